"""The adaptive sampler: fills a step with waiting groups and new prompts, and keeps the groups that have to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adagrpo_ray.algorithm.methods import Method
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.errors import RewardError
from adagrpo_ray.sampling.admission import GroupRun, resumable
from adagrpo_ray.sampling.allocator import Allocator
from adagrpo_ray.sampling.budget import Budget
from adagrpo_ray.sampling.claim import Claim, Queue
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.group_run import Generate, GroupSampler, Score
from adagrpo_ray.types import Group


class AdaptiveSampler:
    """Samples the groups of each step, and keeps the cache: the waiting groups with all of their attempts."""

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
        self._settings, self._max_new_tokens = settings, max_new_tokens
        self.allocator = Allocator(prompts, settings, method.allocation, seed)
        self._groups = GroupSampler(
            settings,
            method,
            generate,
            score,
            self.allocator.rung_pays,
            max_new_tokens=max_new_tokens,
            seed=seed,
            drop_failed=drop_failed,
        )
        self._drop_failed = drop_failed
        self._waiting: tuple[Group, ...] = ()
        self._begun = self._in_flight = 0  # collections

    async def collect(self, step: int, asked: asyncio.Event | None = None) -> Collection:
        """Sample the groups of `step` (counted from 1): waiting groups first, then new prompts.

        - Order: late groups of earlier steps come first, then failed groups in up to half of the remaining places.
        - Each group runs on its own. It starts, and requests its next attempt, while other groups still generate.
        - If the method refills, an exhausted or failed group makes room for a new prompt at once.
        - If completions take less of the budget than was reserved, the next groups start as soon as they fit.
        - If some completions of a pilot are correct, and the criterion is met, its commit is requested at once. A step
          that ends before leaves the commit to the next one.
        - Groups and requests do not depend on the order in which requests end, except for over-sampling and steps that
          are collected at once.
        - If the step samples more groups than it needs, it ends without those that still generate. It waits for groups
          that were late in an earlier step.
        - Several steps may be collected at once. Each takes the groups that wait when it begins.
        - A group that cannot be scored is dropped or, if `drop_failed` is False, continues with the scores given.
        - A group whose request raises RequestLostError is dropped.
        - With `asked`, it ends only once that is set. Until then, cancelling the caller undoes it.

        Raises the errors of `generate` and `score`. Raises RewardError if groups are dropped and none was scored. Such
        an error, or cancelling the caller, cancels all groups of the step and undoes the collection: if it begins
        again, it sends the same requests. If other collections ran at the same time, its groups wait instead, in the
        state before the collection, and the new ones go first.
        """
        budget = Budget(self._settings, self._max_new_tokens)
        claim = self._claim(step, budget)
        self._in_flight += 1
        try:
            runs = await self._sample(claim, step, budget)
            if asked is not None:
                await asked.wait()
        except BaseException:
            self._undo(claim)
            raise
        finally:
            self._in_flight -= 1
        return self._end(claim, runs, step)

    def state_dict(self) -> dict[str, Any]:
        """The state that determines the next step, as plain data and frozen dataclasses; exact between two steps."""
        return {"waiting": list(self._waiting), **self.allocator.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a result of `state_dict`; prompts, settings and seed must be the same."""
        self._waiting = tuple(state["waiting"])
        self.allocator.load_state_dict(state)

    def _claim(self, step: int, budget: Budget) -> Claim:
        """Take the groups that are too old for `step`, and the groups to resume in it, from the queue."""
        before = Queue(self.allocator.position, self._waiting)
        self._begun += 1
        oldest = step - self._settings.max_group_age
        aged = tuple(group for group in self._waiting if group.born < oldest)
        queue = [group for group in self._waiting if group.born >= oldest]
        resumed, self._waiting = resumable(queue, self._settings, budget.room)
        places, alone = self._settings.prompts_per_step, not self._in_flight
        return Claim(self.allocator, step, places, before, self._begun, alone, aged, resumed)

    async def _sample(self, claim: Claim, step: int, budget: Budget) -> list[GroupRun]:
        """Run the resumed groups and new ones until the step is full, or the budget has no room for another group."""
        runs = await self._groups.run(claim.resumed, claim.draw, claim.left_out, step, budget)
        failed = [run.failure for run in runs if run.failure is not None and run.failure.generated]
        if failed and self._drop_failed and not any(run.history for run in runs):
            raise RewardError(f"{failed[0].error}; no group of step {step} could be scored: fix the function")
        return runs

    def _undo(self, claim: Claim) -> None:
        """Undo a collection: restore the queue or, if another collection ran at the same time, requeue its groups."""
        if claim.alone and self._begun == claim.number:
            self.allocator.position, self._waiting = claim.before.position, claim.before.waiting
        else:
            self._waiting = (*self._waiting, *claim.returned())

    def _end(self, claim: Claim, runs: Sequence[GroupRun], step: int) -> Collection:
        """Queue the groups that have to wait, update the posteriors, and return the result of the step."""
        late = tuple(replace(run.group, late=True) for run in runs if run.state == "late")
        # A late group that had an attempt in this step waits like any other.
        waiting = [
            replace(run.group, late=run.group.late and not run.history) for run in runs if run.state == "waiting"
        ]
        self._waiting = (*self._waiting, *late, *waiting)
        attempts = tuple(group for run in runs for group in run.history)
        forecasts = self.allocator.learn(attempts)
        left_out = claim.left_out()
        return Collection(
            ready=tuple(run.group for run in runs if run.state == "ready"),
            exhausted=tuple(run.group for run in runs if run.state == "exhausted"),
            waiting=self._waiting,
            late=late,
            aged=claim.aged,
            failed=tuple(run.failure for run in runs if run.failure is not None),
            attempts=attempts,
            skipped=self.allocator.skipped(step),
            left_out=left_out,
            forecasts=forecasts,
        )
