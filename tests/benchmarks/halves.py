"""The halves of a step for throughput.py: rollouts without a learner, training without rollouts, on the work of a run.

Both halves have the steps that `program` of throughput.py measures: rollouts send the requests of these steps, with the
run's prompts and seeds, and the learner trains on what they gave. At a learning rate of next to nothing the policy of
the run stays the base model, so that the run generates and trains the same tokens, and only then can seconds a step be
compared. `tokens_per_step` of both shows whether they did.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch

from adagrpo_ray.algorithm.ladder import request_seed
from adagrpo_ray.config import Config
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.model.kernels import flash_attention
from adagrpo_ray.rewards.registry import load_reward, score_group
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.sampling.batch import training_samples
from adagrpo_ray.training.preflight import Inputs, check
from adagrpo_ray.types import Attempt, Completion, GenerationRequest, Group, Prompt, TrainBatch

WINDOW_S = 8.0  # shortest measurement of each half
Answers = list[tuple[Prompt, tuple[Completion, ...]]]


def window(steps: int) -> range:
    """The steps of a run that are measured: all but the first quarter, and never the first."""
    return range(max(1, steps // 4) + 1, steps + 1)


class Passes:
    """Measures seconds a step of a half that repeats the same steps: over whole passes, in at least WINDOW_S.

    The clock starts when the first `lead` steps have ended. With as many steps in flight it then has at its start what
    it has at its end: other steps that are partly done.
    """

    def __init__(self, steps: int, lead: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._steps, self._lead, self._clock = steps, lead, clock
        self._ended, self._began = 0, 0.0
        self.seconds_per_step = 0.0  # 0 until it is known

    def end(self) -> None:
        """Count a step that has ended."""
        now = self._clock()
        self._ended += 1
        counted, seconds = self._ended - self._lead, now - self._began
        if not counted:
            self._began = now
        elif counted > 0 and counted % self._steps == 0 and seconds >= WINDOW_S and not self.seconds_per_step:
            self.seconds_per_step = seconds / counted


class Rollouts:
    """One engine in this process, which generates the steps of a run with `config`."""

    def __init__(self, config: Config, inputs: Inputs) -> None:
        self._config, self._inputs = config, inputs
        order = PromptOrder(inputs.prompts.train, config.run.seed, config.data.shuffle)
        self._drawn = [order.take(config.algorithm.prompts_per_step) for _ in range(config.run.steps)]

    async def start(self) -> None:
        self._engine = await RolloutEngine.start(self._inputs.model_path, self._inputs.max_model_len, self._config)

    async def stop(self) -> None:
        await self._engine.stop()

    async def step(self, number: int) -> Answers:
        """Generate the first attempts of a step, counted from 1."""
        config, a, drawn = self._config, self._config.algorithm, self._drawn[number - 1]
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

    async def seconds_per_step(self, steps: Sequence[int], mine: Any, others: Any) -> float:
        """Measure with as many steps in flight as the program may have; `mine` and `others` as in `updates`."""
        lanes, numbers = self._config.algorithm.max_staleness + 1, cycle(steps)
        passes = Passes(len(steps), lanes)

        async def lane() -> None:
            while not (passes.seconds_per_step and others.is_set()):
                await self.step(next(numbers))
                passes.end()
                if passes.seconds_per_step:
                    mine.set()

        await asyncio.gather(*(lane() for _ in range(lanes)))
        return passes.seconds_per_step


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


def updates(config: Config, model_path: str, batches: Sequence[TrainBatch], pipe: Any, mine: Any, others: Any) -> None:
    """Process that trains on the batches at each "train" in the pipe, and answers with seconds per step.

    It sets `mine` when it has measured, and continues until `others` is set, so that the other half never runs alone
    while it is measured.
    """
    torch.set_num_threads(max(1, int(config.learner.cpus)))
    engine = LearnerEngine(model_path, config, 0, 1, ("127.0.0.1", 0))
    for batch in batches:
        engine.train(batch)
    pipe.send("ready")
    while pipe.recv() == "train":
        passes = Passes(len(batches), lead=1)
        for batch in cycle(batches):
            engine.train(batch)
            passes.end()
            if passes.seconds_per_step:
                mine.set()
                if others.is_set():
                    break
        pipe.send(passes.seconds_per_step)


def limits(config: Config) -> dict[str, float]:
    """Seconds per step of both halves, alone and at the same time, and the generated tokens of a step."""
    inputs, spawn = check(config), multiprocessing.get_context("spawn")
    rolled, trained = spawn.Event(), spawn.Event()  # whether a half has been measured, or is not at work
    steps = window(config.run.steps)
    with asyncio.Runner() as loop:
        rollouts = Rollouts(config, inputs)
        loop.run(rollouts.start())
        answers = [loop.run(rollouts.step(number)) for number in range(1, config.run.steps + 1)][steps.start - 1 :]
        batches, (ours, theirs) = [batch_of(config, one) for one in answers], spawn.Pipe()
        learner = spawn.Process(target=updates, args=(config, inputs.model_path, batches, theirs, trained, rolled))
        learner.start()
        theirs.close()  # so that `recv` raises EOFError if the process ends
        ours.recv()

        def measure(*, rolls: bool, trains: bool) -> tuple[float, float]:
            """Seconds per step of rollouts and of training; 0 for a half that is not at work."""
            for event, works in ((rolled, rolls), (trained, trains)):
                event.clear() if works else event.set()
            if trains:
                ours.send("train")
            seconds = loop.run(rollouts.seconds_per_step(steps, rolled, trained)) if rolls else 0.0
            return seconds, ours.recv() if trains else 0.0

        rollout_alone, _ = measure(rolls=True, trains=False)
        _, learner_alone = measure(rolls=False, trains=True)
        rollout_together, learner_together = measure(rolls=True, trains=True)
        ours.send("stop")
        learner.join()
        loop.run(rollouts.stop())
    return {
        "rollout_alone_seconds_per_step": rollout_alone,
        "learner_alone_seconds_per_step": learner_alone,
        "rollout_together_seconds_per_step": rollout_together,
        "learner_together_seconds_per_step": learner_together,
        "tokens_per_step": sum(len(c.token_ids) for one in answers for _, group in one for c in group) / len(steps),
    }
