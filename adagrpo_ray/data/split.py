"""Splitting rows into training and held-out ones by problem, so that no problem is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def split(
    problems: Sequence[str], seed: int, held_out: int, train: int | None
) -> tuple[list[int], list[int], list[int]]:
    """Return the indices of the rows to train on, of those held out, and of those lost, given the problem of each row.

    Rows with the same problem are on the same side. The order of the problems depends only on `seed` and their texts.
    The first problems that fit into `held_out` rows are held out. Of the other problems the first `train` rows are
    trained on. So the order of the rows does not matter, and a smaller `train` is a part of a larger one. If each
    problem has one row, added rows never move a problem from training to the held-out side. If no problem fits into
    the rest of `held_out`, the smallest one is cut, and its other rows are lost.
    """
    rows: dict[str, list[int]] = {}
    for place, problem in enumerate(problems):
        rows.setdefault(problem, []).append(place)
    ordered = sorted(rows, key=lambda problem: _rank(problem, seed))
    aside, rest, room = list[int](), list[str](), held_out
    for problem in ordered:
        if len(rows[problem]) <= room:
            aside += rows[problem]
            room -= len(rows[problem])
        else:
            rest.append(problem)
    lost: list[int] = []
    if room and rest:
        smallest = min(rest, key=lambda problem: len(rows[problem]))
        rest.remove(smallest)
        aside += rows[smallest][:room]
        lost = rows[smallest][room:]
    kept = [place for problem in rest for place in rows[problem]]
    return sorted(kept[:train]), sorted(aside), sorted(lost)


def _rank(problem: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{problem}".encode(errors="surrogatepass")).digest()
