"""Measures the halves of a step or whole steps, for bench.py: throughput.py limits|program OUT CONFIG [key=value ...].

`limits`: vLLM generates the requests of one step after the other, as many steps at a time as `algorithm.max_staleness`
allows, and the learner trains on the results of the same steps; each alone, then both at the same time without waiting
for each other (halves.py). `program`: a real run. Tokens are always generated tokens.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from halves import limits, window

from adagrpo_ray.config import Config
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.runs import Observer
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.preflight import Inputs
from adagrpo_ray.training.resolve import resolve
from adagrpo_ray.training.start import place_and_train
from adagrpo_ray.types import Completion, TrainSample

ROUNDS, WARM_UP = 20, 3  # updates, and the number of first updates that are not counted


def median_seconds(step: Callable[[], Any]) -> float:
    """Median seconds of ROUNDS calls, without the first WARM_UP."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM_UP:])


def learner_alone(config: Config, inputs: Inputs, answers: Sequence[tuple[Completion, ...]]) -> float:
    """Tokens per second of updates on all of these completions, with random advantages."""
    rng, tokens = np.random.default_rng(0), sum(len(c.token_ids) for group in answers for c in group)
    samples = [
        TrainSample(
            prompt.token_ids, c.token_ids, c.logprobs, np.full(len(c.token_ids), 1 / tokens, np.float32), rng.normal()
        )
        for prompt, group in zip(inputs.prompts.train, answers, strict=False)
        for c in group
    ]
    engine = LearnerEngine(inputs.model_path, config, 0, 1, ("127.0.0.1", 0))
    batch = pack_batches(1, samples, 1, config.learner.micro_batch_tokens, engine.packing)[0]
    return tokens / median_seconds(lambda: engine.train(batch))


def program(config: Config) -> dict[str, Any]:
    """Run the program; tokens per second, seconds per step and time by phase, of the steps in `window`.

    `seconds_per_step` is the median of the recorded times, `wall_seconds_per_step` the mean time between two records,
    which also has the work between steps.

    If rollouts run ahead, those of `max_staleness` steps begin before the measured window. So the run has as many steps
    after the window, whose rollouts begin within it. The last steps, which train while the engine is idle, are then
    outside of the window too.
    """
    seen: list[Any] = []
    times: list[float] = []

    class Keep(Observer):
        def step(self, record: Any) -> None:
            seen.append(record)
            times.append(time.perf_counter())

    counted = config.run.steps
    longer = config.run.model_copy(update={"steps": counted + config.algorithm.max_staleness})
    config = config.model_copy(update={"run": longer})
    ready = resolve(config, lambda text: None, name="bench", stop=Stop())
    with tempfile.TemporaryDirectory() as folder:
        place_and_train(ready.config, ready.inputs, Path(folder), Keep(), None, Stop(), folder, 0.0)
    numbers = window(counted)
    steps = [seen[number - 1] for number in numbers]
    tokens, seconds = sum(s.generated_tokens for s in steps), sum(s.step_time for s in steps)
    return {
        "tokens_per_s": tokens / seconds,
        "tokens_per_step": tokens / len(steps),
        "wall_seconds_per_step": (times[counted - 1] - times[numbers.start - 2]) / len(steps),
        "seconds_per_step": statistics.median(s.step_time for s in steps),
        "time": {phase: sum(s.time[phase] for s in steps) / len(steps) for phase in steps[0].time},
        "sync_bytes": steps[-1].sync_bytes,
        "mean_completion_length": statistics.mean(s.completions_mean_length for s in steps),
        "trained_share": sum(s.trained_tokens for s in steps) / sum(s.generated_tokens for s in steps),
        "final_reward": statistics.mean(s.reward for s in steps[-5:]),
    }


def main() -> None:
    part, out, file, *overrides = sys.argv[1:]
    config = Config.load(file, overrides)
    metrics = {"limits": limits, "program": program}[part](config)
    Path(out).write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
