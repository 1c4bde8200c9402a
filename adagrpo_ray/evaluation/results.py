"""The file of results: one line for each finished problem, synced to disk at once.

Its first line holds the settings that the results depend on. Lines are only appended, so that a program that is killed
leaves at most its last line incomplete.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from adagrpo_ray.config.fixed import differences
from adagrpo_ray.errors import ConfigError, ResourceError
from adagrpo_ray.evaluation.settings import settings_digest
from adagrpo_ray.runs.record import OlderVersionError, Record
from adagrpo_ray.storage.places import writing

RESULTS = "results.jsonl"

_writing = partial(writing, otherwise="give another --out")


@dataclass(frozen=True)
class CompletionResult(Record):
    """One completion and its evaluation.

    tokens: its length.
    cut_off: whether it was cut off at `rollout.max_new_tokens`.
    correct: whether it is correct by the reward functions.
    correct_format: whether it has exactly the prompted format.
    correct_anywhere: whether it is correct, or contains the correct answer anywhere.
    extracted: its answer in the prompted form; None if it has none.
    """

    text: str
    tokens: int
    cut_off: bool
    reward: float
    correct: bool
    correct_format: bool
    correct_anywhere: bool
    extracted: str | None = None


@dataclass(frozen=True)
class ProblemResult(Record):
    """A finished problem.

    model, settings: their digests.
    problem: the id of the prompt.
    error: why it could not be generated or scored; "" if it was.
    judges: requests, tokens, cost and so on of judges and reward models, by their names.
    """

    model: str
    settings: str
    problem: str
    prompt: str
    answer: str
    difficulty: str
    error: str
    completions: tuple[CompletionResult, ...]
    judges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class ResultFile:
    """The file of results in `folder`, opened or created, and locked for other programs. Use it as a context manager.

    An incomplete last line is removed. Raises ConfigError if the file has results of other `settings` or is locked by
    another program, and ResourceError if it cannot be written or is damaged.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.digest = folder / RESULTS, settings_digest(settings)
        self._results: dict[str, dict[str, ProblemResult]] = defaultdict(dict)  # model -> problem -> result
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
        """The finished problems of the model with this digest, by their ids."""
        return self._results[model]

    def add(self, result: ProblemResult) -> None:
        """Append a finished problem, and sync the file to disk."""
        self._append(result.to_dict())
        self._results[result.model][result.problem] = result

    def _lock(self) -> None:
        try:
            with _writing(self.path):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when this process ends
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
        # Converted to JSON and back, which makes tuples lists, as in the file.
        changed = list(differences(before, json.loads(json.dumps(dict(settings)))))
        if changed:
            raise ConfigError(
                f"{self.path} has results of other settings: {'; '.join(changed)}; set them back to continue it, or "
                "give another --out"
            )
        for number, line in enumerate(lines[1:], start=2):
            try:
                result = ProblemResult.from_dict(self._parsed(number, line))
            except OlderVersionError as error:
                raise ResourceError(
                    f"{self.path} was written by an older version of adagrpo_ray ({error}); give another --out"
                ) from None
            except (KeyError, TypeError, AttributeError, ValueError) as error:
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
                self._file.truncate(size)  # removes the incomplete line
                raise
