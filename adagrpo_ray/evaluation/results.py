"""The file of results: a line a finished problem, safe on disk before the next one counts.

Its first line holds the settings that all others depend on. It is only ever appended to, so that whatever ends a
program leaves at most its last line unfinished.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Self

from adagrpo_ray.config.fixed import differences
from adagrpo_ray.errors import ConfigError, ResourceError
from adagrpo_ray.evaluation.settings import settings_digest
from adagrpo_ray.runs.record import OlderVersionError, Record
from adagrpo_ray.storage.places import writing

RESULTS = "results.jsonl"

_writing = partial(writing, otherwise="give another --out")


@dataclass(frozen=True)
class CompletionResult(Record):
    """One completion and what it is worth. `cut_off`: it was still going on at `rollout.max_new_tokens`.

    `correct` is what the run's reward functions say; `correct_format` that it keeps the prompted format to the letter;
    `correct_anywhere` that it is correct, or that the correct answer stands somewhere in it.
    """

    text: str
    tokens: int
    cut_off: bool
    reward: float
    correct: bool
    correct_format: bool
    correct_anywhere: bool


@dataclass(frozen=True)
class ProblemResult(Record):
    """One problem, finished: by the digests of model and settings, and its own id. `error`: it could not be scored."""

    model: str
    settings: str
    problem: str
    prompt: str
    answer: str
    difficulty: str
    error: str
    completions: tuple[CompletionResult, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The result whose `to_dict` gave `values`."""
        completions = tuple(CompletionResult.from_dict(entry) for entry in values["completions"])
        words = {field.name: str(values[field.name]) for field in fields(cls) if field.name != "completions"}
        return cls(**words, completions=completions)


class ResultFile:
    """Opens the file of results in `folder`, or makes it. No other program can open it meanwhile; use it as a context
    manager.

    An unfinished last line is cut off. Raises ConfigError where the results there are of other `settings`, or where
    another program writes it, and ResourceError where it cannot be written or is damaged.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.digest = folder / RESULTS, settings_digest(settings)
        self._results: dict[str, dict[str, ProblemResult]] = defaultdict(dict)  # by model, then by problem
        with _writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
        try:
            self._lock()
            self._open(settings)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def of(self, model: str) -> Mapping[str, ProblemResult]:
        """The finished problems of a model, by their ids."""
        return self._results[model]

    def add(self, result: ProblemResult) -> None:
        """Append a finished problem; it is on disk for good when this returns."""
        self._append(result.to_dict())
        self._results[result.model][result.problem] = result

    def _lock(self) -> None:
        try:
            with _writing(self.path):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with this process, however it ends
        except ResourceError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise ConfigError(
                f"{self.path} is being written by another program; wait for it, or give another --out"
            ) from None

    def _open(self, settings: Mapping[str, Any]) -> None:
        with _writing(self.path):
            self._file.seek(0)
            data = self._file.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self.path, whole)
        lines = data[:whole].splitlines()
        if not lines:
            self._append({"settings": dict(settings)})
            return
        before = self._parsed(1, lines[0]).get("settings")
        if not isinstance(before, dict):
            raise self._damaged(1, "it does not hold the settings")
        # Through JSON, which has lists where Python has tuples.
        changed = list(differences(before, json.loads(json.dumps(dict(settings)))))
        if changed:
            raise ConfigError(
                f"{self.path} holds results of other settings: {'; '.join(changed)}; set them back to go on with it, "
                "or give another --out"
            )
        for number, line in enumerate(lines[1:], start=2):
            try:
                result = ProblemResult.from_dict(self._parsed(number, line))
            except OlderVersionError as error:
                raise ResourceError(
                    f"{self.path} was written by an older version of adagrpo_ray ({error}); give another --out"
                ) from None
            except (KeyError, TypeError, AttributeError) as error:
                raise self._damaged(number, repr(error)) from None
            if result.settings != self.digest:
                raise self._damaged(number, f"it is of the settings {result.settings}, the first line of {self.digest}")
            self._results[result.model][result.problem] = result

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(number, str(error)) from None
        if not isinstance(values, dict):
            raise self._damaged(number, f"it holds a {type(values).__name__}")
        return values

    def _damaged(self, number: int, why: str) -> ResourceError:
        return ResourceError(
            f"{self.path}, line {number} cannot be read ({why}); remove that line, or give another --out"
        )

    def _append(self, values: Mapping[str, object]) -> None:
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        with _writing(self.path):
            try:
                while line:
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(size)  # or the next line would go on where this one ends
                raise
