"""What every tracker does, whichever it is."""

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
    """The run that is tracked: its name, its settings, and the local folder that it is written in.

    `note` is what the tracker has left in the folder when an earlier program told it of this run, None where none did.
    """

    name: str
    folder: Path
    config: Config
    note: Mapping[str, str] | None


class Tracker(Protocol):
    """A service that shows runs. Its methods may take as long as they want, and raise whatever they want.

    All of them but `abandon` are called by one thread, `open` first and `close` last.
    """

    title: str
    """Its name for people."""

    def open(self, run: TrackedRun) -> tuple[str, Mapping[str, str]]:
        """Begin or go on; says where the run can be seen, and what to note in its folder for the next time."""

    def has(self, tag: str, step: int) -> bool:
        """Whether it has a value of that curve at `step` or a later one from an earlier program: it takes no other."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Points of the curves `values`."""

    def samples(self, groups: Sequence[GroupSample], step: int) -> None:
        """Some groups of a step."""

    def summary(self, summary: Summary, adapter: str | None) -> None:
        """The sum of the run, and the folder or URL of its adapter where that goes there too."""

    def close(self, state: State) -> None:
        """The run has ended so."""

    def abandon(self) -> None:
        """End what is left of it at once, from another thread; what it has not sent is lost."""
