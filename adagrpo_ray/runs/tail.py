"""A file of JSON lines that a run may still be writing: each look reads what was added since the last one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from adagrpo_ray.errors import HistoryError
from adagrpo_ray.runs.record import OlderVersionError

T = TypeVar("T")


class Tail(Generic[T]):
    """The lines of `path` as `parse` makes them: a function of the JSON, and of the byte that the line begins at."""

    def __init__(self, path: Path, parse: Callable[[Any, int], T]) -> None:
        self._path, self._parse = path, parse
        self._forget()

    def read(self) -> tuple[T, ...]:
        """All finished lines; none where there is no file. HistoryError names one that cannot be read.

        What follows the last newline is left for the next look. A resumed run cuts its files and writes those steps
        again: then this begins anew.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._end - len(self._last))
                if file.read(len(self._last)) != self._last:
                    self._forget()
                    file.seek(0)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._add(line)
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            raise HistoryError(
                f"cannot read {self._path} ({error.strerror or error}); make it readable, or choose another run"
            ) from error
        return tuple(self._items)

    def _add(self, line: bytes) -> None:
        try:
            self._items.append(self._parse(json.loads(line), self._end))
        except OlderVersionError as error:
            raise HistoryError(
                f"{self._path} was written by an older version of adagrpo_ray ({error}); read it with that version, or "
                "choose another run"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise HistoryError(
                f"{self._path}, line {len(self._items) + 1}, is no record of this version ({problem}); "
                "mend or remove that line, or choose another run"
            ) from error
        self._end += len(line)
        self._last = line  # all of it: samples may end alike

    def _forget(self) -> None:
        self._end = 0
        self._last = b""
        self._items: list[T] = []
