"""The runs of a folder, as any number of people look at them: each file is read once, and then what is new of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from adagrpo_ray.errors import ConfigError, HistoryError
from adagrpo_ray.runs.reader import Follower, RunHistory, find
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.viewer.browse import Entry, SampleFile, Wanted

MOST_OPEN = 32
"""Runs that are kept in memory; those not looked at for longest go first."""


class Shelf:
    """Runs by their names, which are those of their folders. Nothing else on the machine has a name here."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._lock = Lock()  # pages ask from many threads
        self._open: OrderedDict[Path, tuple[Follower, SampleFile]] = OrderedDict()

    def names(self) -> list[str]:
        """All runs, newest first; HistoryError where the folder cannot be read."""
        return list(dict.fromkeys(folder.resolve().name for folder in find(self.root)))  # a link has no name here

    def histories(self, names: Sequence[str]) -> tuple[list[RunHistory], list[str]]:
        """These runs as they stand now, and one sentence for each that cannot be read."""
        found, problems = [], []
        for name in names:
            try:
                found.append(self.history(name))
            except (HistoryError, ConfigError) as error:
                problems.append(str(error))
        return found, problems

    def history(self, name: str) -> RunHistory:
        """One run as it stands now, without its samples; HistoryError where it is gone or cannot be read."""
        with self._lock:
            return self._take(name)[0].read()

    def newest(self, name: str) -> Entry | None:
        """The newest of its sampled groups, another one whenever there is something new; None where it has none."""
        with self._lock:
            return next(reversed(self._take(name)[1].entries()), None)

    def groups(self, name: str, wanted: Wanted, most: int) -> tuple[list[Entry], bool]:
        """The newest of its sampled groups that are wanted, at most so many; and whether there are more."""
        with self._lock:
            return self._take(name)[1].find(wanted, most)

    def difficulties(self, name: str) -> list[str]:
        """The difficulty classes of its sampled groups."""
        with self._lock:
            return sorted({entry.difficulty for entry in self._take(name)[1].entries()} - {""})

    def group(self, name: str, at: int) -> GroupSample:
        """The sampled group that begins at this byte of its samples; HistoryError where none does."""
        with self._lock:
            return self._take(name)[1].group(at)

    def _take(self, name: str) -> tuple[Follower, SampleFile]:
        folder = next((folder for folder in find(self.root) if folder.resolve().name == name), None)
        if folder is None:
            raise HistoryError(f"there is no run {name!r} in {self.root}; refresh the list of runs")
        if folder not in self._open:
            self._open[folder] = Follower(folder), SampleFile(folder)
        self._open.move_to_end(folder)
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        return self._open[folder]
