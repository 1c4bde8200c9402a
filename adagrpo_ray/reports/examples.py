"""Which groups of a run are shown: some of each kind, from its beginning to its end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from adagrpo_ray.errors import HistoryError
from adagrpo_ray.runs.samples import GroupSample

SHOWN = {"rescued": 3, "resampled in vain": 2, "sampled once": 1}
"""How many groups of each kind."""

WHOLE_BYTES = 32 * 2**20
"""A file up to this size is read whole; a larger one at so many places, evenly spaced."""
PLACES = 128


def choose(path: Path) -> tuple[GroupSample, ...]:
    """A few groups of the file at `path`, by kind and step; none where there is no file.

    HistoryError where a finished line cannot be read.
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
            f"{path} cannot be read ({error!r}); mend it, or remove it to do without examples"
        ) from error
    return tuple(group for name, groups in kinds.items() for group in _spaced(groups, SHOWN[name]))


def _kind(group: GroupSample) -> str:
    if not group.resampled:
        return "sampled once"
    return "rescued" if any(c.correct for c in group.attempts[-1].completions) else "resampled in vain"


def _lines(path: Path) -> Iterator[bytes]:
    """Finished lines of the file, all of them or some."""
    size = path.stat().st_size
    starts = [0] if size <= WHOLE_BYTES else [size * place // PLACES for place in range(PLACES)]
    before = -1
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            if start:
                file.readline()  # the rest of one
            if file.tell() == before:
                continue  # that one is longer than the places are apart
            before = file.tell()
            for line in file if len(starts) == 1 else [file.readline()]:
                if line.endswith(b"\n"):
                    yield line


def _spaced(groups: Sequence[GroupSample], count: int) -> Sequence[GroupSample]:
    """At most `count` of the groups, the first and the last among them."""
    if len(groups) <= count:
        return groups
    if count == 1:
        return groups[:1]
    return [groups[(len(groups) - 1) * n // (count - 1)] for n in range(count)]
