"""The adaptive sampler: fills a step with waiting groups and new prompts, and keeps the groups that wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adagrpo_ray.algorithm.methods import Method
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.errors import RewardError
from adagrpo_ray.sampling.allocator import Allocator
from adagrpo_ray.sampling.budget import Budget
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.group_run import Generate, GroupRun, GroupSampler, Score
from adagrpo_ray.types import Group

MAX_ROUNDS = 10  # of groups that a step may sample to fill up, if no budget ends it before


@dataclass(frozen=True)
class _Queue:
    """The state that a collection changes before it ends: the number of prompts taken, and the groups that wait."""

    taken: int
    waiting: tuple[Group, ...]


@dataclass(frozen=True, eq=False)
class _Claim:
    """The groups that a collection has taken: too old ones, those to resume and, as it draws them, new ones.

    `before` is the queue as it was then, `number` counts collections; `alone` means that no other one was in flight.
    """

    before: _Queue
    number: int
    alone: bool
    aged: tuple[Group, ...]
    resumed: tuple[Group, ...]
    new: list[Group] = field(default_factory=list)


class AdaptiveSampler:
    """Holds the cache: the groups that wait for a resample, each with all of its attempts."""

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
        self._settings, self._prompts, self._max_new_tokens = settings, prompts, max_new_tokens
        self._allocator = Allocator(prompts, method.allocation, settings.group_size)
        self._groups = GroupSampler(
            settings, method, generate, score, max_new_tokens=max_new_tokens, seed=seed, drop_failed=drop_failed
        )
        self._drop_failed = drop_failed
        self._waiting: tuple[Group, ...] = ()
        self._begun = self._in_flight = 0  # collections

    async def collect(self, step: int) -> Collection:
        """Sample the groups of `step` (counted from 1): waiting ones, then new prompts.

        All groups that an earlier step ended without go first, then failed ones in up to half of the places left.
        Each group runs on its own: it is generated, scored and judged, and asks for its next attempt while
        others still generate. If the method refills, groups that failed for good make room for new prompts
        until the step is full; if completions cost less of the budget than they might have, it samples as many
        more groups as then fit. If it samples more groups than it needs, it ends without those that still
        generate, but for those that an earlier step ended without. Several steps may be collected at once; each takes
        the groups that wait when it begins.

        A group that cannot be scored is dropped; if `drop_failed` is False it continues with the scores given.

        Raises the errors of `generate` and `score`, and RewardError if groups are dropped and none was scored; the
        step's other groups are then cancelled, as all are if the caller is. Either way it is as if the collection
        had never begun, and the same requests are sent if it begins again. If others ran at the same time, its groups
        wait instead, as they were before it, the new ones to go first.
        """
        budget = Budget(self._settings, self._allocator.largest, self._max_new_tokens)
        claim = self._claim(step, budget)
        self._in_flight += 1
        try:
            runs = await self._sample(claim, step, budget)
        except BaseException:
            self._undo(claim)
            raise
        finally:
            self._in_flight -= 1
        return self._end(claim, runs)

    def state_dict(self) -> dict[str, Any]:
        """The state that the next step depends on, as plain data and frozen dataclasses; exact between steps."""
        return {"waiting": list(self._waiting), **self._allocator.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` gave, with the same prompts, settings and seed."""
        self._waiting = tuple(state["waiting"])
        self._allocator.load_state_dict(state)

    def _claim(self, step: int, budget: Budget) -> _Claim:
        """Take the groups that are too old for `step`, and those to resume in it."""
        before = _Queue(self._prompts.taken, self._waiting)
        self._begun += 1
        oldest = step - self._settings.max_group_age
        aged = tuple(group for group in self._waiting if group.born < oldest)
        queue = [group for group in self._waiting if group.born >= oldest]
        slots = budget.slots(self._settings.prompts_per_step)
        resumed, self._waiting = _split(queue, slots, budget.places(slots))
        return _Claim(before, self._begun, not self._in_flight, aged, resumed)

    async def _sample(self, claim: _Claim, step: int, budget: Budget) -> list[GroupRun]:
        """Run the resumed groups and new ones until the step is full, or the budget has no room for another group."""
        runs: list[GroupRun] = []
        resumed = claim.resumed
        for _ in range(MAX_ROUNDS):
            slots = budget.slots(self._settings.prompts_per_step - self._groups.counted(runs))
            if slots <= 0:
                break
            new = self._allocator.draw(budget.places(slots) - len(resumed), step)
            claim.new.extend(new)
            runs += await self._groups.run([*resumed, *new], step, budget, enough=slots)
            resumed = ()
        failed = [run.failure for run in runs if run.failure is not None]
        if failed and self._drop_failed and not any(run.history for run in runs):
            raise RewardError(f"{failed[0].error}; no group of step {step} could be scored: mend the function")
        return runs

    def _undo(self, claim: _Claim) -> None:
        """Give the groups of a collection back: the whole queue unless another collection ran at the same time."""
        if claim.alone and self._begun == claim.number:
            self._prompts.taken, self._waiting = claim.before.taken, claim.before.waiting
        else:
            new = [replace(group, late=True) for group in claim.new]
            self._waiting = (*self._waiting, *claim.aged, *claim.resumed, *new)

    def _end(self, claim: _Claim, runs: Sequence[GroupRun]) -> Collection:
        """Put the groups that are not done into the queue, learn from first attempts, and sum up the step."""
        late = tuple(replace(run.group, late=True) for run in runs if run.state == "late")
        # A late group that has had an attempt in this step waits like any other.
        waiting = [
            replace(run.group, late=run.group.late and not run.history) for run in runs if run.state == "waiting"
        ]
        self._waiting = (*self._waiting, *late, *waiting)
        attempts = tuple(group for run in runs for group in run.history)
        self._allocator.learn([group for group in attempts if len(group.attempts) == 1])
        return Collection(
            ready=tuple(run.group for run in runs if run.state == "ready"),
            exhausted=tuple(run.group for run in runs if run.state == "exhausted"),
            waiting=self._waiting,
            late=late,
            aged=claim.aged,
            failed=tuple(run.failure for run in runs if run.failure is not None),
            attempts=attempts,
        )


def _split(queue: Sequence[Group], slots: int, places: int) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """The groups to resume in a step of so many slots and places, which over-sampling adds to; and the rest.

    Late ones first, as far as there are slots; failed ones get half of the places left, or one if it is the only one.
    """
    late, failed = [group for group in queue if group.late], [group for group in queue if not group.late]
    left = places - min(slots, len(late))
    half = min(left, max(1, left // 2))
    return (*late[:slots], *failed[:half]), (*late[slots:], *failed[half:])
