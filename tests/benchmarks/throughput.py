"""Measures the halves of a step or whole steps, for bench.py: throughput.py limits|program OUT CONFIG [key=value ...].

`limits`: vLLM generates the requests of one step after the other, as many steps at a time as `algorithm.max_staleness`
allows, and the learner trains on the result of one step; each alone, then both at the same time without waiting for
each other. `program`: a real run. Tokens are always generated tokens. A rate of the learner counts all tokens of the
step, even those of completions without an advantage, which it may leave out.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adagrpo_ray.algorithm.ladder import request_seed
from adagrpo_ray.config import Config
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.model.kernels import flash_attention
from adagrpo_ray.rewards.registry import load_reward, score_group
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.runs import Observer
from adagrpo_ray.sampling.batch import training_samples
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.preflight import Inputs, check
from adagrpo_ray.training.resolve import resolve
from adagrpo_ray.training.start import place_and_train
from adagrpo_ray.types import Attempt, Completion, GenerationRequest, Group, Prompt, TrainBatch, TrainSample

ROUNDS, WARM_UP = 20, 3  # updates, and the number of first updates that are not counted
WINDOW_S = 8.0  # duration of the measurement of each limit
Answers = list[tuple[Prompt, tuple[Completion, ...]]]


class Rollouts:
    """One engine in this process, which generates the steps of `config` in the order of a run."""

    def __init__(self, config: Config, inputs: Inputs) -> None:
        self._config, self._inputs = config, inputs
        self._order = PromptOrder(inputs.prompts.train, config.run.seed, config.data.shuffle)

    async def start(self) -> None:
        self._engine = await RolloutEngine.start(self._inputs.model_path, self._inputs.max_model_len, self._config)

    async def stop(self) -> None:
        await self._engine.stop()

    async def step(self) -> Answers:
        """Generate the first attempts of the next step."""
        config, a = self._config, self._config.algorithm
        drawn = self._order.take(a.prompts_per_step)
        requests = [
            GenerationRequest(
                prompt_id=prompt.id,
                prompt_token_ids=prompt.token_ids,
                n=a.group_size,
                sampling=a.sampling,
                max_new_tokens=config.rollout.max_new_tokens,
                seed=request_seed(config.run.seed, prompt.id, epoch, 0),
            )
            for prompt, epoch in drawn
        ]
        answers = await asyncio.gather(*(self._engine.generate(request) for request in requests))
        return [(prompt, answer) for (prompt, _), answer in zip(drawn, answers, strict=True)]

    async def tokens_per_s(self) -> float:
        """The rate with as many steps in flight as the program may have."""
        began, tokens = time.perf_counter(), 0

        async def lane() -> None:
            nonlocal tokens
            while time.perf_counter() - began < WINDOW_S:
                count = tokens_of(await self.step())
                tokens += count

        await asyncio.gather(*(lane() for _ in range(self._config.algorithm.max_staleness + 1)))
        return tokens / (time.perf_counter() - began)


def tokens_of(answers: Answers) -> int:
    """The number of generated tokens."""
    return sum(len(c.token_ids) for _, group in answers for c in group)


def batch_of(config: Config, answers: Answers) -> TrainBatch:
    """Score the answers; the batch of one rank."""
    functions = [(load_reward(f.function), f.weight) for f in config.rewards.functions]
    groups = []
    for prompt, completions in answers:
        scores = score_group(
            functions,
            completions=[c.text for c in completions],
            answer=prompt.answer,
            prompt=prompt.text,
            format=config.data.format,
            difficulty=prompt.difficulty,
            columns=prompt.columns,
        )
        correct = scores.by_function[:, -1] > config.rewards.correct_above
        sampling = config.algorithm.sampling
        attempt = Attempt(-1, sampling, completions, scores.rewards, scores.by_function, correct)
        groups.append(Group(prompt, epoch=0, born=1, size=len(completions)).with_attempt(attempt))
    samples = training_samples(groups, config.algorithm, config.rollout.max_new_tokens)
    packing = config.learner.packing_with(flash_attention(config.model))
    return pack_batches(1, samples, 1, config.learner.micro_batch_tokens, packing)[0]


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


def updates(config: Config, model_path: str, batch: TrainBatch, pipe: Any) -> None:
    """Process that trains on `batch` for WINDOW_S at each "train" in the pipe, and answers with updates per second."""
    torch.set_num_threads(max(1, int(config.learner.cpus)))
    engine = LearnerEngine(model_path, config, 0, 1, ("127.0.0.1", 0))
    for _ in range(WARM_UP):
        engine.train(batch)
    pipe.send("ready")
    while pipe.recv() == "train":
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < WINDOW_S:
            engine.train(batch)
            count += 1
        pipe.send(count / (time.perf_counter() - began))


def limits(config: Config) -> dict[str, float]:
    """Tokens per second of both halves, alone and at the same time."""
    inputs = check(config)
    with asyncio.Runner() as loop:
        rollouts = Rollouts(config, inputs)
        loop.run(rollouts.start())
        for _ in range(WARM_UP):
            answers = loop.run(rollouts.step())
        spawn, tokens = multiprocessing.get_context("spawn"), tokens_of(answers)
        ours, theirs = spawn.Pipe()
        learner = spawn.Process(target=updates, args=(config, inputs.model_path, batch_of(config, answers), theirs))
        learner.start()
        ours.recv()
        rollout_alone = loop.run(rollouts.tokens_per_s())
        ours.send("train")
        learner_only = tokens * ours.recv()
        ours.send("train")
        rollout_together = loop.run(rollouts.tokens_per_s())
        learner_together = tokens * ours.recv()
        ours.send("stop")
        learner.join()
        loop.run(rollouts.stop())
    return {
        "rollout_alone_tokens_per_s": rollout_alone,
        "learner_alone_tokens_per_s": learner_only,
        "rollout_together_tokens_per_s": rollout_together,
        "learner_together_tokens_per_s": learner_together,
    }


def program(config: Config) -> dict[str, Any]:
    """Run the program; tokens per second, seconds per step and time by phase, without the first quarter of the steps.

    If rollouts run ahead, those of `max_staleness` steps begin before the measured window. So the run has as many steps
    after the window, whose rollouts begin within it. The last steps, which train while the engine is idle, are then
    outside of the window too.
    """
    seen: list[Any] = []

    class Keep(Observer):
        def step(self, record: Any) -> None:
            seen.append(record)

    counted = config.run.steps
    longer = config.run.model_copy(update={"steps": counted + config.algorithm.max_staleness})
    config = config.model_copy(update={"run": longer})
    ready = resolve(config, lambda text: None, name="bench", stop=Stop())
    with tempfile.TemporaryDirectory() as folder:
        place_and_train(ready.config, ready.inputs, Path(folder), Keep(), None, Stop(), folder, 0.0)
    steps = seen[counted // 4 : counted]
    seconds = sum(s.step_time for s in steps)
    return {
        "tokens_per_s": sum(s.generated_tokens for s in steps) / seconds,
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
