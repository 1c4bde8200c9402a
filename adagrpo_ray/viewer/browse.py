"""Searches the sampled groups of a run. Texts stay on disk until a group is opened."""

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
    """A group in the list.

    at: the offset of its line in the file, in bytes.
    prompt: the beginning of the problem.
    attempts: the number of its attempts.
    first_best, last_best: the highest reward of the first and the last attempt; None if it is unknown.
    last_correct, last_size: the correct completions, and all completions, of the last attempt.
    A pilot and its commit are one attempt.
    """

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
class Query:
    """A search for groups. None and "" match every group.

    text: is searched in problems, answers, completions, and the turns and observations of episodes.
    """

    first_step: int | None = None
    last_step: int | None = None
    outcome: str = ""
    difficulty: str = ""
    resampled: bool = False
    text: str = ""

    def matches(self, entry: Entry) -> bool:
        """Whether the entry matches everything except `text`."""
        return (
            (self.first_step is None or entry.step >= self.first_step)
            and (self.last_step is None or entry.step <= self.last_step)
            and self.outcome in ("", entry.outcome)
            and self.difficulty in ("", entry.difficulty)
            and (entry.resampled or not self.resampled)
        )

    def matches_text(self, group: GroupSample) -> bool:
        """Whether a text of the group contains `text`, ignoring case."""
        texts = [group.prompt_id, group.prompt, group.answer]
        for attempt in group.attempts:
            for completion in attempt.completions:
                texts.append(completion.text)
                texts += (text for turn in completion.turns for text in (turn.text, turn.observation))
        return any(self.text.casefold() in text.casefold() for text in texts)


class SampleFile:
    """The samples of one run. Texts are read when needed, since those of a long run do not fit into memory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SAMPLES
        self._tail = Tail(self._path, _entry)

    def entries(self) -> tuple[Entry, ...]:
        """All groups so far, the oldest first. Raises HistoryError, which names the line, if one cannot be read."""
        return self._tail.read()

    def find(self, query: Query, most: int) -> tuple[list[Entry], bool]:
        """The newest groups that match, at most `most` of them; and whether there are more."""
        found: list[Entry] = []
        for entry in self._matches(query):
            if len(found) == most:
                return found, True
            found.append(entry)
        return found, False

    def group(self, at: int) -> GroupSample:
        """The group whose line begins at byte `at`. Raises HistoryError if there is none, as after a resumption."""
        if all(entry.at != at for entry in self.entries()):
            raise HistoryError(f"that group is no longer in {self._path}: the run was resumed from a checkpoint")
        return self._read(at)

    def _matches(self, query: Query) -> Iterator[Entry]:
        for entry in reversed(self.entries()):
            if query.matches(entry) and (not query.text or query.matches_text(self._read(entry.at))):
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
    last = [completion for attempt in group.final for completion in attempt.completions]
    last_best = max((completion.reward for completion in last), default=None)
    return Entry(
        at=at,
        step=group.step,
        prompt_id=group.prompt_id,
        prompt=group.prompt if len(group.prompt) <= SHOWN else f"{group.prompt[:SHOWN]}…",
        difficulty=group.difficulty,
        outcome=group.outcome,
        attempts=group.count(),
        resampled=group.resampled,
        first_best=group.attempts[0].best_reward if group.resampled else last_best,
        last_best=last_best,
        last_correct=sum(completion.correct for completion in last),
        last_size=len(last),
    )
