"""Runs the groups of one step side by side: samples each until it is ready, exhausted or has to wait.

It needs only two callables, `generate` and `score`, so that tests need neither Ray nor an engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.ladder import request_seed
from adagrpo_ray.algorithm.methods import Method
from adagrpo_ray.algorithm.overlong import overlong_penalty
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.errors import RequestLostError
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.sampling.budget import Budget
from adagrpo_ray.sampling.collection import Failure
from adagrpo_ray.types import Attempt, Completion, GenerationRequest, Group, Prompt, SamplingParams

Generate = Callable[[GenerationRequest], Awaitable[tuple[Completion, ...]]]
Score = Callable[[Prompt, Sequence[Completion]], Awaitable[tuple[Scores, NDArray[np.bool_]]]]


@dataclass(eq=False)
class GroupRun:
    """The state of a group in one step."""

    group: Group
    state: Literal["late", "ready", "exhausted", "waiting", "failed"] = "late"  # "late" until it ends
    scoring: bool = False  # whether its newest completions are being scored
    cut: bool = False  # whether the step ended without it, so that it gets no further attempt
    history: list[Group] = field(default_factory=list)  # the group after each attempt of this step
    failure: Failure | None = None  # with the message of the first error


class GroupSampler:
    """Runs groups: generates, scores, and applies the criterion and the ladder of the method."""

    def __init__(
        self,
        settings: AlgorithmSettings,
        method: Method,
        generate: Generate,
        score: Score,
        *,
        max_new_tokens: int,
        seed: int,
        drop_failed: bool,
    ) -> None:
        self._settings, self._method, self._generate, self._score = settings, method, generate, score
        self._max_new_tokens, self._seed, self._drop_failed = max_new_tokens, seed, drop_failed

    def counted(self, runs: Sequence[GroupRun]) -> int:
        """How many places of a step the runs fill: one for each ended group or, if the method refills, ready group."""
        return sum(run.state == "ready" if self._method.refill else run.state != "late" for run in runs)

    async def run(self, groups: Sequence[Group], step: int, budget: Budget, enough: int) -> list[GroupRun]:
        """Run the groups side by side until `enough` of them count; returns the runs in the order of the groups.

        Groups that are still generating then are cancelled. Groups whose completions are complete are scored and count.
        """
        runs = [GroupRun(group) for group in groups]
        late = {id(run) for run in runs if run.group.late}  # the step waits for all of these
        tasks = [asyncio.create_task(self._finish(run, step, budget)) for run in runs]
        try:
            for next_to_end in asyncio.as_completed(tasks):
                run = await next_to_end  # raises its error
                late.discard(id(run))
                enough -= self.counted([run])
                if enough <= 0 and not late:
                    break
            for run, task in zip(runs, tasks, strict=True):
                run.cut = True
                if not run.scoring:
                    task.cancel()
            await asyncio.gather(*(task for run, task in zip(runs, tasks, strict=True) if run.scoring))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return runs

    async def _finish(self, run: GroupRun, step: int, budget: Budget) -> GroupRun:
        """Sample one group until it meets the criterion, has to wait, or has no rung left."""
        while run.state == "late":
            group = run.group
            sampling = self._method.ladder.next(group, step)
            if sampling is None:
                run.state = "exhausted"
            elif run.history and self._settings.resample == "deferred":
                run.state = "waiting"
            elif run.cut:
                break
            elif not budget.take(group.size):
                run.state = "waiting"
            else:
                try:
                    attempt, error = await self._attempt(run, sampling)
                except RequestLostError as lost:
                    budget.give_back(group.size, 0)
                    first = str(lost) if run.failure is None else run.failure.error
                    run.failure = Failure(group, 0, dropped=True, error=first, generated=False)
                    run.state = "failed"
                    break
                budget.give_back(group.size, attempt.generated_tokens)
                if error is not None and run.failure is None:
                    run.failure = Failure(group, attempt.generated_tokens, self._drop_failed, error)
                if error is not None and self._drop_failed:
                    run.state = "failed"
                    break
                run.group = group.with_attempt(attempt)
                run.history.append(run.group)
                if self._method.criterion(run.group):
                    run.state = "ready"
        return run

    async def _attempt(self, run: GroupRun, sampling: SamplingParams) -> tuple[Attempt, str | None]:
        """Sample and score the next attempt of the group; returns it, and the error if it could not be scored."""
        group, number = run.group, len(run.group.attempts)
        completions = await self._generate(
            GenerationRequest(
                prompt_id=group.prompt.id,
                prompt_token_ids=group.prompt.token_ids,
                n=group.size,
                sampling=sampling,
                max_new_tokens=self._max_new_tokens,
                seed=request_seed(self._seed, group.prompt.id, group.epoch, number),
            )
        )
        run.scoring = True
        scores, correct = await self._score(group.prompt, completions)
        run.scoring = False
        rewards, buffer = scores.rewards, self._settings.overlong_buffer
        if buffer is not None:
            lengths = [len(c.token_ids) for c in completions]
            rewards = rewards + overlong_penalty(lengths, self._max_new_tokens, buffer)
        attempt = Attempt(
            rung=number + group.start - 1,
            sampling=sampling,
            completions=completions,
            rewards=rewards,
            rewards_by_function=scores.by_function,
            correct=correct,
        )
        return attempt, scores.error
