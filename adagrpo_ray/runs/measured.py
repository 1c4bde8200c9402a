"""Metrics that may not have been measured. Such a metric is None, never NaN: NaN would be a fault."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that were measured; None if none was.

    The sum is exact, and of quotients: that of a few values near float64's largest would overflow otherwise.
    """
    measured = [float(value) for value in values if value is not None]
    if not measured:
        return None
    try:
        return math.fsum(measured) / len(measured)
    except OverflowError:
        return math.fsum(value / len(measured) for value in measured)


def ratio(whole: float, parts: float) -> float | None:
    """`whole` / `parts`; None if there are no parts. Worked example: tokens a second of a step that took no time."""
    return whole / parts if parts else None


def known(value: float) -> float | None:
    """A score of a numpy array, in which NaN marks a reward function that does not apply: None then."""
    return None if math.isnan(value) else float(value)


def measured(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those of the named values that were measured."""
    return {name: float(value) for name, value in values.items() if value is not None}
