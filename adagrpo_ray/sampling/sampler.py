"""The adaptive sampler: fills a step with groups, and samples failing groups again, each on its own.

A plain object over two callables, `generate` and `score`, so that it is tested without Ray or an engine.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.allocation import Posterior, Share, allocate
from adagrpo_ray.algorithm.ladder import request_seed
from adagrpo_ray.algorithm.methods import Method
from adagrpo_ray.algorithm.overlong import overlong_penalty
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.sampling.budget import Budget
from adagrpo_ray.sampling.collection import Collection, Failure
from adagrpo_ray.types import Attempt, Completion, GenerationRequest, Group, Prompt, SamplingParams

Generate = Callable[[GenerationRequest], Awaitable[tuple[Completion, ...]]]
Score = Callable[[Prompt, Sequence[Completion]], Awaitable[tuple[Scores, NDArray[np.bool_]]]]


MAX_ROUNDS = 10  # of groups that a step may sample to fill up, where no budget ends it before


@dataclass(eq=False)
class _Visit:
    """A group's part in one step: where it stands, and the group as it was after each attempt of the step."""

    group: Group
    state: Literal["late", "ready", "exhausted", "waiting", "failed"] = "late"  # until it ends
    scoring: bool = False  # its newest completions are there, and not their rewards yet
    cut: bool = False  # the step has ended without it: no further attempt
    history: list[Group] = field(default_factory=list)
    failure: Failure | None = None  # the first


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
        drop_failed: bool = True,
    ) -> None:
        self._settings, self._method = settings, method
        self._prompts, self._generate, self._score = prompts, generate, score
        self._max_new_tokens, self._seed, self._drop_failed = max_new_tokens, seed, drop_failed
        self._waiting: list[Group] = []
        self._begun = self._in_flight = 0  # collections
        self._posteriors: dict[str, Posterior] = {}  # by prompt
        self._difficulties: dict[str, Posterior] = {}  # by difficulty class, for prompts that were never seen

    async def collect(self, step: int) -> Collection:
        """Sample the groups of `step` (counted from 1): waiting ones, then new prompts.

        All groups that an earlier step ended without go first, then failed ones in up to half of the places left.
        Each group runs on its own: it is generated, scored and judged, and asks for its next attempt while
        others still generate. Where the method refills, groups that failed for good make room for new prompts
        until the step is full; where completions cost less of the budget than they might have, it samples as many
        more groups as then fit. Where it samples more groups than it needs, it ends without those that still
        generate, but for those that an earlier step ended without. Several steps may be collected at once; each takes
        what waits when it begins.

        A group that cannot be scored is dropped; where `drop_failed` is False it goes on with the scores given.

        Raises what `generate` or `score` raises, and RewardError where groups are dropped and none was scored; the
        step's other groups are then cancelled, as all are where the caller is. Either way it is as if the collection
        had never begun, and begun again it asks for the same. Where others ran beside it, its groups wait instead, as
        they were before it, the new ones to go first.
        """
        alone = not self._in_flight
        self._begun += 1
        begun, taken, waiting = self._begun, self._prompts.taken, self._waiting
        oldest = step - self._settings.max_group_age
        aged = tuple(g for g in self._waiting if g.born < oldest)
        queue = [g for g in self._waiting if g.born >= oldest]
        in_tokens, allocation = self._settings.budget_unit == "tokens", self._method.allocation
        budget = Budget(self._settings.budget, self._max_new_tokens if in_tokens else 1)
        size = self._settings.group_size
        size = size if allocation is None else max(size, allocation.sizes(size)[1])
        wanted = self._settings.prompts_per_step

        def places(slots: int) -> int:
            return budget.groups(size, slots + math.ceil(self._settings.over_sample * slots))

        slots = budget.groups(size, wanted)
        resumed, self._waiting = self._resume(queue, slots, places(slots))
        drawn: list[Group] = []
        visits: list[_Visit] = []
        self._in_flight += 1
        try:
            for number in range(MAX_ROUNDS):
                first = resumed if number == 0 else []
                slots = budget.groups(size, wanted - self._counted(visits))  # no prompt is drawn that cannot be sampled
                if slots <= 0:
                    break
                new = self._draw(places(slots) - len(first), step)
                drawn += new
                visits += await self._round([*first, *new], step, budget, slots)
            failed = tuple(v.failure for v in visits if v.failure is not None)
            if failed and self._drop_failed and not any(v.history for v in visits):
                raise RewardError(f"{failed[0].error}; no group of step {step} could be scored: mend the function")
        except BaseException:
            if alone and self._begun == begun:
                self._prompts.taken, self._waiting = taken, waiting
            else:
                self._waiting += [*aged, *resumed, *(replace(g, late=True) for g in drawn)]
            raise
        finally:
            self._in_flight -= 1
        late = tuple(replace(v.group, late=True) for v in visits if v.state == "late")
        # Who has had an attempt in this step waits like any other.
        waits = [replace(v.group, late=v.group.late and not v.history) for v in visits if v.state == "waiting"]
        self._waiting += [*late, *waits]
        self._learn([g for v in visits for g in v.history if len(g.attempts) == 1])
        return Collection(
            ready=tuple(v.group for v in visits if v.state == "ready"),
            exhausted=tuple(v.group for v in visits if v.state == "exhausted"),
            waiting=tuple(self._waiting),
            late=late,
            aged=aged,
            failed=failed,
            attempts=tuple(g for v in visits for g in v.history),
        )

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, as plain data and frozen dataclasses; exact between steps."""
        return {
            "prompts": self._prompts.state_dict(),
            "waiting": list(self._waiting),
            "posteriors": dict(self._posteriors),
            "difficulties": dict(self._difficulties),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with the same prompts, settings and seed."""
        self._prompts.load_state_dict(state["prompts"])
        self._waiting = list(state["waiting"])
        self._posteriors, self._difficulties = dict(state["posteriors"]), dict(state["difficulties"])

    @staticmethod
    def _resume(queue: Sequence[Group], slots: int, places: int) -> tuple[list[Group], list[Group]]:
        """The groups that go on in a step of so many slots and places, which over-sampling adds to; and the rest.

        All late ones, as far as there are slots; of the places left, failed ones get half, or one where it is one.
        """
        late, failed = [g for g in queue if g.late], [g for g in queue if not g.late]
        left = places - min(slots, len(late))
        half = min(left, max(1, left // 2))
        return [*late[:slots], *failed[:half]], [*late[slots:], *failed[half:]]

    def _draw(self, n: int, step: int) -> list[Group]:
        """The next `n` prompts as new groups, without those that the allocation leaves out."""
        groups: list[Group] = []
        passed_over = 0
        while len(groups) < n:
            ((prompt, epoch),) = self._prompts.take(1)
            share: Share | None = Share(self._settings.group_size, 0)
            # Where whole passes are left out everything is solved, and one may as well go on training on it.
            if self._method.allocation is not None and passed_over < len(self._prompts):
                posterior = self._posteriors.get(prompt.id) or self._difficulties.get(prompt.difficulty)
                share = allocate(posterior, epoch, self._method.allocation, self._settings.group_size)
            if share is None:
                passed_over += 1
            else:
                groups.append(Group(prompt, epoch, born=step, size=share.size, start=share.start))
        return groups

    def _learn(self, first_attempts: Sequence[Group]) -> None:
        """Update the posteriors, by first attempts alone, since stopping at a success biases the rest."""
        if self._method.allocation is None:
            return
        difficulties: dict[str, NDArray[np.bool_]] = {}
        for group in first_attempts:
            self._update(self._posteriors, group.prompt.id, group.last.correct)
            before = difficulties.get(group.prompt.difficulty, np.empty(0, np.bool_))
            difficulties[group.prompt.difficulty] = np.concatenate([before, group.last.correct])
        for difficulty, correct in difficulties.items():
            self._update(self._difficulties, difficulty, correct)

    def _update(self, posteriors: dict[str, Posterior], key: str, correct: NDArray[np.bool_]) -> None:
        assert self._method.allocation is not None
        right, before = int(correct.sum()), posteriors.get(key, Posterior())
        posteriors[key] = before.after(right, len(correct) - right, self._method.allocation.discount)

    def _counted(self, visits: Sequence[_Visit]) -> int:
        """How many of the visits a step need not make again: all that ended, or where it refills all ready ones."""
        return sum(v.state == "ready" if self._method.refill else v.state != "late" for v in visits)

    async def _round(self, groups: Sequence[Group], step: int, budget: Budget, enough: int) -> list[_Visit]:
        """All these groups side by side, until `enough` of them count; in their order, whoever ends first.

        What then still generates is cancelled; what is generated in full is scored and counts.
        """
        visits = [_Visit(group) for group in groups]
        first = {id(visit) for visit in visits if visit.group.late}  # that the step waits for
        tasks = [asyncio.create_task(self._visit(visit, step, budget)) for visit in visits]
        try:
            for next_to_end in asyncio.as_completed(tasks):
                visit = await next_to_end  # raises what it raised
                first.discard(id(visit))
                enough -= self._counted([visit])
                if enough <= 0 and not first:
                    break
            for visit, task in zip(visits, tasks, strict=True):
                visit.cut = True
                if not visit.scoring:
                    task.cancel()
            await asyncio.gather(*(task for visit, task in zip(visits, tasks, strict=True) if visit.scoring))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return visits

    async def _visit(self, visit: _Visit, step: int, budget: Budget) -> _Visit:
        """Sample one group until it meets the criterion, has to wait, or has used up its ladder."""
        while visit.state == "late":
            group = visit.group
            sampling = self._method.ladder.next(group, step)
            if sampling is None:
                visit.state = "exhausted"
            elif visit.history and self._settings.resample == "deferred":
                visit.state = "waiting"
            elif visit.cut:
                break
            elif not budget.take(group.size):
                visit.state = "waiting"
            else:
                attempt, error = await self._attempt(visit, sampling)
                if self._settings.budget_unit == "tokens":
                    budget.give_back(group.size * self._max_new_tokens - attempt.generated_tokens)
                if error is not None and visit.failure is None:
                    visit.failure = Failure(group, attempt.generated_tokens, self._drop_failed, error)
                if error is not None and self._drop_failed:
                    visit.state = "failed"
                    break
                visit.group = group = group.with_attempt(attempt)
                visit.history.append(group)
                if self._method.criterion(group):
                    visit.state = "ready"
        return visit

    async def _attempt(self, visit: _Visit, sampling: SamplingParams) -> tuple[Attempt, str | None]:
        """The group's next attempt, and why it could not be scored where it could not."""
        group, number = visit.group, len(visit.group.attempts)
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
        visit.scoring = True
        scores, correct = await self._score(group.prompt, completions)
        visit.scoring = False
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
