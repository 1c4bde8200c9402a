"""The adaptive sampler: fills a step with groups, and samples failing groups again, each on its own.

A plain object over two callables, `generate` and `score`, so that it is tested without Ray or an engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.criterion import Criterion
from adagrpo_ray.algorithm.ladder import Ladder, request_seed
from adagrpo_ray.config.tree import AlgorithmSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.types import Attempt, Completion, GenerationRequest, Group, Prompt, SamplingParams

Generate = Callable[[GenerationRequest], Awaitable[tuple[Completion, ...]]]
Score = Callable[[Prompt, Sequence[Completion]], Awaitable[tuple[Scores, NDArray[np.bool_]]]]


@dataclass(frozen=True, eq=False)
class Collection:
    """What a step's sampling brought in.

    `ready` groups met the criterion; `exhausted` ones failed on the last rung; `waiting` ones go on in a
    later step; `aged` ones were given up because they waited too long. `attempts` are all that this step
    sampled, with the group as it was after each.
    """

    ready: tuple[Group, ...]
    exhausted: tuple[Group, ...]
    waiting: tuple[Group, ...]
    aged: tuple[Group, ...]
    attempts: tuple[Group, ...]


class Budget:
    """Completions that may still be generated in a step; None: any number."""

    def __init__(self, completions: int | None) -> None:
        self._left = completions

    def take(self, n: int) -> bool:
        """Take `n` completions; False, and nothing taken, where fewer are left."""
        if self._left is None:
            return True
        if self._left < n:
            return False
        self._left -= n
        return True


@dataclass(frozen=True, eq=False)
class _Visit:
    """How a group's part in one step ended, and the group as it was after each attempt of the step."""

    group: Group
    state: Literal["ready", "exhausted", "waiting"]
    history: list[Group]


class AdaptiveSampler:
    """Holds the cache: the groups that wait for a resample, each with the statistics of its attempts."""

    def __init__(
        self,
        settings: AlgorithmSettings,
        ladder: Ladder,
        criterion: Criterion,
        prompts: PromptOrder,
        generate: Generate,
        score: Score,
        *,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self._settings, self._ladder, self._criterion = settings, ladder, criterion
        self._prompts, self._generate, self._score = prompts, generate, score
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self._waiting: list[Group] = []

    async def collect(self, step: int) -> Collection:
        """Sample the groups of `step` (counted from 1): waiting ones in up to half of the slots, then new prompts.

        Each group runs on its own: it is generated, scored and judged, and asks for its next attempt while
        others still generate. Raises what `generate` or `score` raises; the step's other groups are then
        cancelled.
        """
        oldest = step - self._settings.max_group_age
        aged = tuple(g for g in self._waiting if g.born < oldest)
        queue = [g for g in self._waiting if g.born >= oldest]
        slots = self._settings.prompts_per_step
        if self._settings.budget is not None:  # no prompt is drawn that the budget cannot sample
            slots = min(slots, self._settings.budget // self._settings.group_size)
        resumed = queue[: max(1, slots // 2)]
        new = [Group(prompt, visit, born=step) for prompt, visit in self._prompts.take(slots - len(resumed))]
        budget = Budget(self._settings.budget)
        try:
            async with asyncio.TaskGroup() as tasks:
                visits = [tasks.create_task(self._visit(g, step, budget)) for g in (*resumed, *new)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        ended = [visit.result() for visit in visits]  # in the order of the slots, whoever ended first
        self._waiting = [*queue[len(resumed) :], *(v.group for v in ended if v.state == "waiting")]
        return Collection(
            ready=tuple(v.group for v in ended if v.state == "ready"),
            exhausted=tuple(v.group for v in ended if v.state == "exhausted"),
            waiting=tuple(self._waiting),
            aged=aged,
            attempts=tuple(g for v in ended for g in v.history),
        )

    async def _visit(self, group: Group, step: int, budget: Budget) -> _Visit:
        """Sample one group until it meets the criterion, has to wait, or has used up its ladder."""
        history: list[Group] = []
        while True:
            sampling = self._ladder.params(step, len(group.attempts))
            if sampling is None:
                return _Visit(group, "exhausted", history)
            if (history and self._settings.resample == "deferred") or not budget.take(self._settings.group_size):
                return _Visit(group, "waiting", history)
            group = group.with_attempt(await self._attempt(group, sampling))
            history.append(group)
            if self._criterion(group):
                return _Visit(group, "ready", history)

    async def _attempt(self, group: Group, sampling: SamplingParams) -> Attempt:
        number = len(group.attempts)
        completions = await self._generate(
            GenerationRequest(
                prompt_id=group.prompt.id,
                prompt_token_ids=group.prompt.token_ids,
                n=self._settings.group_size,
                sampling=sampling,
                max_new_tokens=self._max_new_tokens,
                seed=request_seed(self._seed, group.prompt.id, group.visit, number),
            )
        )
        scores, correct = await self._score(group.prompt, completions)
        return Attempt(
            rung=number - 1,
            sampling=sampling,
            completions=completions,
            rewards=scores.rewards,
            rewards_by_function=scores.by_function,
            correct=correct,
        )
