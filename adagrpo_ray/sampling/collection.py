"""The groups of one step, by how they ended."""

from __future__ import annotations

from dataclasses import dataclass

from adagrpo_ray.sampling.calibration import Forecast
from adagrpo_ray.types import Group, Part


@dataclass(frozen=True, eq=False)
class Failure:
    """A group that could not be generated or scored.

    - `group`: the group before the attempt that failed; before the last one that did, if it was dropped.
    - `tokens`: tokens generated in that attempt.
    - `dropped`: whether the group was dropped, so that these tokens are lost; else it continued with
      `rewards.error_score`.
    - `error`: the message of the first error.
    - `generated`: whether the completions of that attempt were generated; if not, its prompt was given up.
    - `part`: the part of the attempt that failed.
    """

    group: Group
    tokens: int
    dropped: bool
    error: str
    generated: bool = True
    part: Part = "whole"

    @property
    def resample(self) -> bool:
        """Whether the attempt that failed was a resample."""
        return len(self.group.attempts) > (self.part == "commit")


@dataclass(frozen=True, eq=False)
class Collection:
    """The groups of one step, by how they ended.

    - `ready`: met the criterion.
    - `exhausted`: failed on the last rung.
    - `waiting`: continue in a later step; these include the late ones.
    - `late`: were still generating when the step ended.
    - `aged`: were given up because they waited too long.
    - `failed`: could not be generated or scored.
    - `attempts`: every attempt that this step sampled and scored, as the group after that attempt.
    - `skipped`: the number of prompts that were left out, since they are solved or hopeless.
    - `left_out`: how many of them were not replaced, so that their places are empty.
    - `forecasts`: the success rates that were expected of the prompts of first attempts, with their results.
    """

    ready: tuple[Group, ...]
    exhausted: tuple[Group, ...]
    waiting: tuple[Group, ...]
    late: tuple[Group, ...]
    aged: tuple[Group, ...]
    failed: tuple[Failure, ...]
    attempts: tuple[Group, ...]
    skipped: int = 0
    left_out: int = 0
    forecasts: tuple[Forecast, ...] = ()
