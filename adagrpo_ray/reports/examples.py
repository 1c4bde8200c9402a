"""Selects the example groups of a report: some of each kind, from the whole run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from adagrpo_ray.errors import HistoryError
from adagrpo_ray.runs.samples import GroupSample

SHOWN = {"rescued": 3, "not rescued": 2, "sampled once": 1}
"""Number of groups of each kind; the first two are of groups that were sampled again."""

WHOLE_BYTES = 32 * 2**20
"""Largest file that is read as a whole, in bytes."""

PLACES = 128
"""Number of evenly spaced places at which a larger file is read."""


def choose(path: Path) -> tuple[GroupSample, ...]:
    """Some groups of the file at `path`, by kind and step; none if there is no file.

    Raises HistoryError if a complete line cannot be read.
    """
    kinds: dict[str, list[GroupSample]] = {name: [] for name in SHOWN}
    try:
        for line in _lines(path):
            group = GroupSample.from_dict(json.loads(line))
            if group.attempts:
                kinds[_kind(group)].append(group)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError(
            f"{path} cannot be read ({error!r}); fix it, or remove it to get a report without examples"
        ) from error
    return tuple(group for name, groups in kinds.items() for group in _spaced(groups, SHOWN[name]))


def _kind(group: GroupSample) -> str:
    if not group.resampled:
        return "sampled once"
    return "rescued" if any(c.correct for attempt in group.final for c in attempt.completions) else "not rescued"


def _lines(path: Path) -> Iterator[bytes]:
    """The complete lines of the file: all of them, or of a large file those at `PLACES` places."""
    size = path.stat().st_size
    starts = [0] if size <= WHOLE_BYTES else [size * place // PLACES for place in range(PLACES)]
    before = -1
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            if start:
                file.readline()  # the rest of a line
            if file.tell() == before:
                continue  # that line is longer than the distance of two places
            before = file.tell()
            for line in file if len(starts) == 1 else [file.readline()]:
                if line.endswith(b"\n"):
                    yield line


def _spaced(groups: Sequence[GroupSample], count: int) -> Sequence[GroupSample]:
    """At most `count` of the groups, evenly spaced from the first to the last."""
    if len(groups) <= count:
        return groups
    if count == 1:
        return groups[:1]
    return [groups[(len(groups) - 1) * n // (count - 1)] for n in range(count)]
