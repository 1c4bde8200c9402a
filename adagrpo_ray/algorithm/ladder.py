"""The ladder of resamples: the sampling parameters of the next attempt of a group, if there is one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from adagrpo_ray.types import Group, SamplingParams


@dataclass(frozen=True)
class Ladder:
    """Sampling parameters of first attempts and of resamples.

    - `base`: the parameters of first attempts.
    - `triggers`: pairs (from_step, rungs), ordered by step. The last trigger whose from_step has been reached is in
      effect. Before the first trigger there are no resamples. Each rung has the parameters of one resample.
    """

    base: SamplingParams
    triggers: tuple[tuple[int, tuple[SamplingParams, ...]], ...] = ()

    def rungs(self, step: int) -> tuple[SamplingParams, ...]:
        """The rungs in effect at `step` (counted from 1)."""
        allowed: tuple[SamplingParams, ...] = ()
        for from_step, rungs in self.triggers:
            if from_step <= step:
                allowed = rungs
        return allowed

    def params(self, step: int, attempts: int) -> SamplingParams | None:
        """Parameters of the next attempt of a group that has had `attempts`; None if no rung is left."""
        if attempts == 0:
            return self.base
        rungs = self.rungs(step)
        return rungs[attempts - 1] if attempts <= len(rungs) else None

    def next(self, group: Group, step: int) -> SamplingParams | None:
        """Parameters of the next attempt of `group` at `step`; None if no rung is left.

        It is not asked about commits, nor after one: a group with a commit is ready. So `group.attempts` has an entry
        for each attempt: the attempt or, with pilots, its pilot.
        """
        return self.params(step, len(group.attempts) + group.start)

    def placed(self, group: Group, step: int) -> Group:
        """The group, which starts at the base if there is no rung at `step` for its first attempt."""
        missing = not group.attempts and group.start > len(self.rungs(step))
        return replace(group, start=0) if missing else group

    @property
    def height(self) -> int:
        """The largest number of rungs of a trigger."""
        return max((len(rungs) for _, rungs in self.triggers), default=0)


def request_seed(run_seed: int, prompt_id: str, epoch: int, attempt: int, *, commit: bool = False) -> int:
    """Seed of one attempt, 0 <= seed < 2**31, so that a request that is sent again draws the same completions.

    The commit of an attempt has a seed of its own.
    """
    key = f"{run_seed}/{prompt_id}/{epoch}/{attempt}{'/commit' if commit else ''}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1
