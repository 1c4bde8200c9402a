"""Keeps the runs of a folder in memory for all pages: each file is read once, and then only its new lines."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from adagrpo_ray.errors import ConfigError, HistoryError
from adagrpo_ray.runs.reader import Follower, RunHistory, find
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.viewer.browse import Entry, Query, SampleFile

MOST_OPEN = 32
"""Largest number of runs in memory; the least recently used ones are dropped."""


class OpenRuns:
    """The runs in the folder `root`, by the names of their folders. No path outside of it can be opened."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._lock = Lock()  # pages use it from many threads
        self._open: OrderedDict[Path, tuple[Follower, SampleFile]] = OrderedDict()

    def names(self) -> list[str]:
        """The names of all runs, newest first. Raises HistoryError if the folder cannot be read."""
        return list(dict.fromkeys(folder.resolve().name for folder in find(self.root)))  # links are resolved

    def histories(self, names: Sequence[str]) -> tuple[list[RunHistory], list[str]]:
        """These runs as they are now, and a message for each that cannot be read."""
        found, problems = [], []
        for name in names:
            try:
                found.append(self.history(name))
            except (HistoryError, ConfigError) as error:
                problems.append(str(error))
        return found, problems

    def history(self, name: str) -> RunHistory:
        """One run as it is now, without samples. Raises HistoryError if it is gone or cannot be read."""
        with self._lock:
            return self._take(name)[0].read()

    def newest(self, name: str) -> Entry | None:
        """The newest of its sampled groups, which changes when there are new ones; None if it has none."""
        with self._lock:
            return next(reversed(self._take(name)[1].entries()), None)

    def groups(self, name: str, query: Query, most: int) -> tuple[list[Entry], bool]:
        """The newest of its sampled groups that match, at most `most`; and whether there are more."""
        with self._lock:
            return self._take(name)[1].find(query, most)

    def difficulties(self, name: str) -> list[str]:
        """The difficulties of its sampled groups."""
        with self._lock:
            return sorted({entry.difficulty for entry in self._take(name)[1].entries()} - {""})

    def group(self, name: str, at: int) -> GroupSample:
        """The sampled group whose line begins at byte `at`. Raises HistoryError if there is none."""
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
