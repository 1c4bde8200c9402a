"""Reads a JSON-lines file repeatedly while a run writes it, each time only the lines that are new."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from adagrpo_ray.errors import HistoryError
from adagrpo_ray.runs.record import OlderVersionError

T = TypeVar("T")


class Tail(Generic[T]):
    """The lines of `path`, each converted by `parse(value, offset)`; `offset` is the byte at which the line begins."""

    def __init__(self, path: Path, parse: Callable[[Any, int], T]) -> None:
        self._path, self._parse = path, parse
        self._forget()

    def read(self) -> tuple[T, ...]:
        """All complete lines; none if the file does not exist. An incomplete last line is left for the next call.

        If the file was cut since the last call, as a resumed run does, it is read again from its beginning.
        Raises HistoryError, which names the line, if one cannot be parsed.
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
                "fix or remove that line, or choose another run"
            ) from error
        self._end += len(line)
        self._last = line  # the whole line, because lines of samples may have equal ends

    def _forget(self) -> None:
        self._end = 0
        self._last = b""
        self._items: list[T] = []
