"""The ladder of resamples: which sampling parameters a group's next attempt uses, if it gets one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from adagrpo_ray.types import Group, SamplingParams


@dataclass(frozen=True)
class Ladder:
    """`base` for first attempts; from each trigger's step on, its rungs for the resamples, one each.

    `triggers` are (from_step, rungs), ordered by step. The trigger in force at a step is the last one
    whose from_step is not above it; before the first there is no resampling. Every group starts at `base`,
    so there is nothing to reset between groups.
    """

    base: SamplingParams
    triggers: tuple[tuple[int, tuple[SamplingParams, ...]], ...] = ()

    def rungs(self, step: int) -> tuple[SamplingParams, ...]:
        """The resamples that are allowed at `step` (counted from 1)."""
        allowed: tuple[SamplingParams, ...] = ()
        for from_step, rungs in self.triggers:
            if from_step <= step:
                allowed = rungs
        return allowed

    def params(self, step: int, attempts: int) -> SamplingParams | None:
        """Parameters of the next attempt of a group that has had `attempts`; None: the ladder is used up."""
        if attempts == 0:
            return self.base
        rungs = self.rungs(step)
        return rungs[attempts - 1] if attempts <= len(rungs) else None

    def next(self, group: Group, step: int) -> SamplingParams | None:
        """Parameters of the group's next attempt at `step`; None if it has used up the ladder.

        A group that was to start on a missing rung starts at the base.
        """
        params = self.params(step, len(group.attempts) + group.start)
        return self.base if params is None and not group.attempts else params

    @property
    def height(self) -> int:
        """Most resamples that any trigger allows."""
        return max((len(rungs) for _, rungs in self.triggers), default=0)


def request_seed(run_seed: int, prompt_id: str, epoch: int, attempt: int) -> int:
    """Seed of one attempt, 0 <= seed < 2**31: the same request sent again draws the same completions."""
    key = f"{run_seed}/{prompt_id}/{epoch}/{attempt}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1
