"""The adaptive sampler: fills a step with groups, and samples failing groups again, each on its own.

A plain object over two callables, `generate` and `score`, so that it is tested without Ray or an engine.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.allocation import Posterior, Share, allocate
from adagrpo_ray.algorithm.ladder import request_seed
from adagrpo_ray.algorithm.methods import Method
from adagrpo_ray.algorithm.overlong import overlong_penalty
from adagrpo_ray.config.algorithm import AlgorithmSettings
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


MAX_ROUNDS = 10  # of new prompts that a step may draw to fill up, where no budget ends it before


class Budget:
    """Completions that may still be generated in a step; None: any number."""

    def __init__(self, completions: int | None) -> None:
        self._left = math.inf if completions is None else completions

    def take(self, n: int) -> bool:
        """Take `n` completions; False, and nothing taken, where fewer are left."""
        if self._left < n:
            return False
        self._left -= n
        return True

    def groups(self, size: int, wanted: int) -> int:
        """How many groups of `size` completions fit, at most `wanted`."""
        return min(wanted, int(min(self._left, wanted * size)) // size)


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
        method: Method,
        prompts: PromptOrder,
        generate: Generate,
        score: Score,
        *,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self._settings, self._method = settings, method
        self._prompts, self._generate, self._score = prompts, generate, score
        self._max_new_tokens, self._seed = max_new_tokens, seed
        self._waiting: list[Group] = []
        self._posteriors: dict[str, Posterior] = {}

    async def collect(self, step: int) -> Collection:
        """Sample the groups of `step` (counted from 1): waiting ones in up to half of the slots, then new prompts.

        Each group runs on its own: it is generated, scored and judged, and asks for its next attempt while
        others still generate. Where the method refills, groups that failed for good make room for new prompts
        until the step is full. Raises what `generate` or `score` raises; the step's other groups are then
        cancelled.
        """
        oldest = step - self._settings.max_group_age
        aged = tuple(g for g in self._waiting if g.born < oldest)
        queue = [g for g in self._waiting if g.born >= oldest]
        budget, allocation = Budget(self._settings.budget), self._settings.allocation
        size = max(self._settings.group_size, allocation.max_group if allocation.enabled else 0)
        slots = budget.groups(size, self._settings.prompts_per_step)  # no prompt is drawn that cannot be sampled
        resumed, queue = queue[: max(1, slots // 2)], queue[max(1, slots // 2) :]
        ended = await self._round([*resumed, *self._draw(slots - len(resumed), step)], step, budget)
        for _ in range(MAX_ROUNDS - 1 if self._method.refill else 0):
            missing = budget.groups(size, slots - sum(v.state == "ready" for v in ended))
            if not missing:
                break
            ended += await self._round(self._draw(missing, step), step, budget)
        self._waiting = [*queue, *(v.group for v in ended if v.state == "waiting")]
        self._learn([g for v in ended for g in v.history if len(g.attempts) == 1])
        return Collection(
            ready=tuple(v.group for v in ended if v.state == "ready"),
            exhausted=tuple(v.group for v in ended if v.state == "exhausted"),
            waiting=tuple(self._waiting),
            aged=aged,
            attempts=tuple(g for v in ended for g in v.history),
        )

    def _draw(self, n: int, step: int) -> list[Group]:
        """The next `n` prompts as new groups, without those that the allocation leaves out."""
        groups: list[Group] = []
        passed_over = 0
        while len(groups) < n:
            ((prompt, visit),) = self._prompts.take(1)
            share: Share | None = Share(self._settings.group_size, 0)
            # Where whole passes are left out everything is solved, and one may as well go on training on it.
            if self._settings.allocation.enabled and passed_over < len(self._prompts):
                posterior = self._posteriors.get(prompt.id)
                share = allocate(posterior, visit, self._settings.allocation, self._settings.group_size)
            if share is None:
                passed_over += 1
            else:
                groups.append(Group(prompt, visit, born=step, size=share.size, start=share.start))
        return groups

    def _learn(self, first_attempts: Sequence[Group]) -> None:
        """Update the posteriors, by first attempts alone, since stopping at a success biases the rest."""
        for group in first_attempts if self._settings.allocation.enabled else ():
            right, discount = int(group.last.correct.sum()), self._settings.allocation.discount
            before = self._posteriors.get(group.prompt.id, Posterior())
            self._posteriors[group.prompt.id] = before.after(right, group.size - right, discount)

    async def _round(self, groups: Sequence[Group], step: int, budget: Budget) -> list[_Visit]:
        """All these groups side by side; the results are in their order, whoever ends first."""
        try:
            async with asyncio.TaskGroup() as tasks:
                visits = [tasks.create_task(self._visit(group, step, budget)) for group in groups]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [visit.result() for visit in visits]

    async def _visit(self, group: Group, step: int, budget: Budget) -> _Visit:
        """Sample one group until it meets the criterion, has to wait, or has used up its ladder."""
        history: list[Group] = []
        while True:
            sampling = self._method.ladder.params(step, len(group.attempts) + group.start)
            if sampling is None and not group.attempts:  # it was to start on a rung that is not there
                sampling = self._method.ladder.base
            if sampling is None:
                return _Visit(group, "exhausted", history)
            if (history and self._settings.resample == "deferred") or not budget.take(group.size):
                return _Visit(group, "waiting", history)
            group = group.with_attempt(await self._attempt(group, sampling))
            history.append(group)
            if self._method.criterion(group):
                return _Visit(group, "ready", history)

    async def _attempt(self, group: Group, sampling: SamplingParams) -> Attempt:
        number = len(group.attempts)
        completions = await self._generate(
            GenerationRequest(
                prompt_id=group.prompt.id,
                prompt_token_ids=group.prompt.token_ids,
                n=group.size,
                sampling=sampling,
                max_new_tokens=self._max_new_tokens,
                seed=request_seed(self._seed, group.prompt.id, group.visit, number),
            )
        )
        scores, correct = await self._score(group.prompt, completions)
        rewards, buffer = scores.rewards, self._settings.overlong_buffer
        if buffer is not None:
            lengths = [len(c.token_ids) for c in completions]
            rewards = rewards + overlong_penalty(lengths, self._max_new_tokens, buffer)
        return Attempt(
            rung=number + group.start - 1,
            sampling=sampling,
            completions=completions,
            rewards=rewards,
            rewards_by_function=scores.by_function,
            correct=correct,
        )
