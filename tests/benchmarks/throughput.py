"""Tokens per second of the rollout alone, the learner alone, and the whole program: make bench.

One run on one machine: vLLM generates a step's requests, the learner trains on what they gave, then the program
does both for real. Prints the figures and writes runs/bench/bench.json. ARGS="key=value ..." changes settings.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adagrpo_ray.config import Config, load_config
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.observe import Observers
from adagrpo_ray.preflight import Inputs, check
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.trainer import train
from adagrpo_ray.types import Completion, GenerationRequest, TrainSample

ROUNDS, WARM_UP = 20, 3


def median_seconds(step: Callable[[], None]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM_UP:])


def rollout_alone(config: Config, inputs: Inputs) -> tuple[float, list[tuple[Completion, ...]]]:
    """Tokens per second on the first attempts of one step, and the completions."""
    a = config.algorithm
    requests = [
        GenerationRequest(p.id, p.token_ids, a.group_size, a.sampling.params(), config.rollout.max_new_tokens, seed)
        for seed, p in enumerate(inputs.prompts.train[: a.prompts_per_step])
    ]
    answers: list[tuple[Completion, ...]] = []

    async def every() -> None:
        answers[:] = await asyncio.gather(*(engine.generate(request) for request in requests))

    with asyncio.Runner() as loop:
        engine = loop.run(RolloutEngine.start(inputs.model_path, inputs.max_model_len, config))
        seconds = median_seconds(lambda: loop.run(every()))
        loop.run(engine.stop())
    return sum(len(c.token_ids) for group in answers for c in group) / seconds, answers


def learner_alone(config: Config, inputs: Inputs, answers: list[tuple[Completion, ...]]) -> float:
    """Tokens per second of optimizer steps on all of these completions."""
    rng, tokens = np.random.default_rng(0), sum(len(c.token_ids) for group in answers for c in group)
    samples = [
        TrainSample(
            prompt.token_ids, c.token_ids, c.logprobs, np.full(len(c.token_ids), 1 / tokens, np.float32), rng.normal()
        )
        for prompt, group in zip(inputs.prompts.train, answers, strict=False)
        for c in group
    ]
    engine = LearnerEngine(inputs.model_path, config, 0, 1, ("127.0.0.1", 29551))
    batch = pack_batches(1, samples, 1, config.learner.micro_batch_tokens, engine.padded)[0]
    return tokens / median_seconds(lambda: engine.train(batch) and None)


def program(config: Config, inputs: Inputs) -> tuple[float, float]:
    """Generated tokens per second of the whole program, and its share of time spent on sync."""
    folder = Path(tempfile.mkdtemp())
    seen: list[dict[str, object]] = []

    class Keep(Observers):
        def step(self, record: object) -> None:
            seen.append(record.to_dict())  # type: ignore[attr-defined]

    train(config, inputs, folder, Keep())
    steps = seen[WARM_UP:]
    seconds = sum(s["seconds"] for s in steps)  # type: ignore[misc]
    sync = sum(s["seconds_by_phase"]["sync"] for s in steps)  # type: ignore[index]
    return sum(s["generated_tokens"] for s in steps) / seconds, sync / seconds  # type: ignore[misc]


def main() -> None:
    overrides = [f"run.steps={ROUNDS}", "data.held_out_prompts=0", "algorithm.triggers=[]", *sys.argv[1:]]
    config = load_config("launch/configs/tiny-cpu.yaml", overrides)
    inputs = check(config)
    rollout, answers = rollout_alone(config, inputs)
    learner = learner_alone(config, inputs, answers)
    ours, sync = program(config, inputs)
    in_turn = 1 / (1 / rollout + 1 / learner)
    figures = {
        "rollout_tokens_per_s": rollout,
        "learner_tokens_per_s": learner,
        "ours_tokens_per_s": ours,
        "share_of_rollout_and_learner_in_turn": ours / in_turn,
        "share_of_time_in_sync": sync,
    }
    for name, value in figures.items():
        print(f"{name:40} {value:12,.2f}")
    out = Path("runs/bench/bench.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
