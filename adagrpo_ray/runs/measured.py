"""Arithmetic on metrics that may not have been measured. Such a metric is None; NaN would be a bug."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the measured values; None if there are none.

    The sum is exact. If it overflows, as that of a few values near the largest float64 does, it is one of fractions.
    """
    found = [float(value) for value in values if value is not None]
    if not found:
        return None
    try:
        return math.fsum(found) / len(found)
    except OverflowError:
        return float(sum(map(Fraction, found)) / len(found))


def ratio(whole: float, parts: float) -> float | None:
    """`whole` / `parts`; None if `parts` is 0, as for the tokens per second of a step that took no time."""
    return whole / parts if parts else None


def known(value: float) -> float | None:
    """A score from a numpy array; None if it is NaN, which marks a reward function that does not apply."""
    return None if math.isnan(value) else float(value)


def measured(values: Mapping[str, float | None]) -> dict[str, float]:
    """The values that were measured, by name."""
    return {name: float(value) for name, value in values.items() if value is not None}
