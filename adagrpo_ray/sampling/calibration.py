"""How well expected success rates agree with first attempts: the Brier score, and sums for a reliability plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adagrpo_ray.runs.measured import mean

BINS = 10
"""Intervals of success rates in a reliability plot."""


@dataclass(frozen=True)
class Forecast:
    """Success rates that were expected of a prompt before its first attempt was learned from, and its completions.

    - `expected`: by its posterior.
    - `prior`: without its own results, by its class.
    - `correct`, `completions`: of its first attempt or, with pilots, of the pilot.
    """

    expected: float
    prior: float
    correct: int
    completions: int


def calibration(forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """The fields of `SamplingMetrics` that describe forecasts.

    The Brier score of a completion is (p - 1)^2 if it is correct and p^2 if not, for expected success rate p (Brier,
    "Verification of forecasts expressed in terms of probability", 1950).
    """
    bins: dict[str, list[Forecast]] = {}
    for forecast in sorted(forecasts, key=lambda each: each.expected):
        place = min(BINS - 1, int(forecast.expected * BINS))
        bins.setdefault(f"{place / BINS:g}", []).append(forecast)
    return {
        "brier_posterior": mean(_brier(f.expected, f) for f in forecasts),
        "brier_prior": mean(_brier(f.prior, f) for f in forecasts),
        "reliability": {name: _sums(inside) for name, inside in bins.items()},
    }


def _sums(forecasts: Sequence[Forecast]) -> tuple[int, float, int]:
    """The numbers of completions: all of them, those that were expected to be correct, and those that were."""
    return (
        sum(f.completions for f in forecasts),
        sum(f.expected * f.completions for f in forecasts),
        sum(f.correct for f in forecasts),
    )


def _brier(p: float, forecast: Forecast) -> float:
    """The mean Brier score of the completions of a forecast, for expected success rate `p`."""
    share = forecast.correct / forecast.completions
    return share * (1 - p) ** 2 + (1 - share) * p**2
