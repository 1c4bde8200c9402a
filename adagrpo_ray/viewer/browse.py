"""The sampled groups of a run, chosen by what one looks for; on disk until one is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import HistoryError
from adagrpo_ray.runs.history import SAMPLES
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.tail import Tail

SHOWN = 100
"""Characters of a problem in the list of groups."""


@dataclass(frozen=True)
class Entry:
    """A group in the list. `at` is the byte in the file where it begins; rewards are the best of an attempt's."""

    at: int
    step: int
    prompt_id: str
    prompt: str
    difficulty: str
    outcome: str
    attempts: int
    resampled: bool
    first_best: float | None
    last_best: float | None
    last_correct: int
    last_size: int


@dataclass(frozen=True)
class Wanted:
    """What to look for; None and "" leave a question open. `text` may be in problems, answers and completions."""

    first_step: int | None = None
    last_step: int | None = None
    outcome: str = ""
    difficulty: str = ""
    resampled: bool = False
    text: str = ""

    def fits(self, entry: Entry) -> bool:
        """Whether the entry is one of these, as far as it can say without its texts."""
        return (
            (self.first_step is None or entry.step >= self.first_step)
            and (self.last_step is None or entry.step <= self.last_step)
            and self.outcome in ("", entry.outcome)
            and self.difficulty in ("", entry.difficulty)
            and (entry.resampled or not self.resampled)
        )

    def found_in(self, group: GroupSample) -> bool:
        """Whether one of the group's texts holds `text`, in capitals or not."""
        texts = [group.prompt_id, group.prompt, group.answer]
        texts += (completion.text for attempt in group.attempts for completion in attempt.completions)
        return any(self.text.casefold() in text.casefold() for text in texts)


class SampleFile:
    """The samples of one run. Texts are read where they are asked for: those of a long run do not fit into memory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SAMPLES
        self._tail = Tail(self._path, _entry)

    def entries(self) -> tuple[Entry, ...]:
        """All groups so far, the oldest first; HistoryError names a line that cannot be read."""
        return self._tail.read()

    def find(self, wanted: Wanted, most: int) -> tuple[list[Entry], bool]:
        """The newest groups that are wanted, at most so many; and whether there are more."""
        found: list[Entry] = []
        for entry in self._matches(wanted):
            if len(found) == most:
                return found, True
            found.append(entry)
        return found, False

    def group(self, at: int) -> GroupSample:
        """The group that begins at this byte; HistoryError where none does, since the run was taken back."""
        if all(entry.at != at for entry in self.entries()):
            raise HistoryError(f"that group is no longer in {self._path}: the run went back to a checkpoint")
        return self._read(at)

    def _matches(self, wanted: Wanted) -> Iterator[Entry]:
        for entry in reversed(self.entries()):
            if wanted.fits(entry) and (not wanted.text or wanted.found_in(self._read(entry.at))):
                yield entry

    def _read(self, at: int) -> GroupSample:
        try:
            with self._path.open("rb") as file:
                file.seek(at)
                return GroupSample.from_dict(json.loads(file.readline()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HistoryError(f"cannot read a group of {self._path} again ({error!r}); refresh the list") from error


def _entry(values: Any, at: int) -> Entry:
    group = GroupSample.from_dict(values)
    last = group.attempts[-1].completions if group.attempts else ()
    return Entry(
        at=at,
        step=group.step,
        prompt_id=group.prompt_id,
        prompt=group.prompt if len(group.prompt) <= SHOWN else f"{group.prompt[:SHOWN]}…",
        difficulty=group.difficulty,
        outcome=group.outcome,
        attempts=len(group.attempts),
        resampled=group.resampled,
        first_best=group.attempts[0].best_reward if group.attempts else None,
        last_best=group.attempts[-1].best_reward if group.attempts else None,
        last_correct=sum(completion.correct for completion in last),
        last_size=len(last),
    )
