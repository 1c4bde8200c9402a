"""The interface of trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from adagrpo_ray.config.tree import Config
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary

State = Literal["finished", "failed", "killed"]


@dataclass(frozen=True)
class TrackedRun:
    """The run that is tracked.

    folder: the local folder that it is written to.
    note: the note that `Tracker.open` returned in an earlier program of this run; None if there is none.
    """

    name: str
    folder: Path
    config: Config
    note: Mapping[str, str] | None


class Tracker(Protocol):
    """A service that shows runs. Its methods may block, and may raise any exception.

    One thread calls all methods except `abandon`, `open` first and `close` last.
    """

    title: str
    """Its name for people."""

    def open(self, run: TrackedRun) -> tuple[str, Mapping[str, str]]:
        """Begin the run or continue it.

        Returns the place at which people find the run, and the note to store in its folder for a later program.
        """

    def has(self, tag: str, step: int) -> bool:
        """Whether the curve has a value at `step` or later from an earlier program, so that it must not get another."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of the curves, by tag."""

    def samples(self, groups: Sequence[GroupSample], step: int) -> None:
        """Add groups of a step."""

    def summary(self, summary: Summary, adapter: str | None) -> None:
        """Add the summary of the run, and the adapter from its folder or URL unless it is None."""

    def close(self, state: State) -> None:
        """End the run with this state."""

    def abandon(self) -> None:
        """Stop at once, called from another thread. Records that were not sent are lost."""
