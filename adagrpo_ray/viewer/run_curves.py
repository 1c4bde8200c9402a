"""Computes the curves of runs: the panels drawn, their x-axes, and the reduction to few points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from adagrpo_ray.runs import panels
from adagrpo_ray.runs.measured import mean
from adagrpo_ray.runs.metric import metrics_of, series, unit_of
from adagrpo_ray.runs.panels import Panel
from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord

Axis = Literal["step", "generated tokens"]
Point = tuple[float, float | None]
"""The position on the x-axis, and the value; None leaves a gap."""

AXES: tuple[Axis, ...] = ("step", "generated tokens")
PLOTS = (
    *(panels.REWARD, panels.ACCURACY, panels.BENCHMARKS, panels.RESAMPLES, panels.GROUP_SIZE),
    *(panels.ZERO_STD, panels.PACE, panels.STALENESS),
)
"""The panels that are drawn, in this order."""
MOST_POINTS = 150
"""Largest number of points of a curve; more would only be noise at this width."""


@dataclass(frozen=True)
class Curve:
    """A curve of one run.

    run: the name of the run.
    line: the tag of the metric.
    number: the place of the tag among those of the plot, from 0.
    """

    run: str
    line: str
    number: int
    points: tuple[Point, ...]

    @property
    def measured(self) -> list[tuple[float, float]]:
        """The points without the gaps."""
        return [(x, y) for x, y in self.points if y is not None]

    def stretches(self) -> list[list[tuple[float, float]]]:
        """The points between gaps, which a line connects."""
        found: list[list[tuple[float, float]]] = [[]]
        for x, y in self.points:
            if y is not None:
                found[-1].append((x, y))
            elif found[-1]:
                found.append([])
        return [stretch for stretch in found if stretch]


@dataclass(frozen=True)
class Plot:
    """A plot; `low` and `high` are the ends of its y-axis, unless a value lies beyond them or they are None."""

    title: str
    curves: tuple[Curve, ...]
    low: float | None = None
    high: float | None = None


def plots(runs: Sequence[RunHistory], axis: Axis) -> list[Plot]:
    """All plots of these runs, in the order of PLOTS; that of benchmarks only if a run has them."""
    drawn = []
    for panel in PLOTS:
        lines = [_lines(run, panel) for run in runs]
        numbers = {line: number for number, line in enumerate(dict.fromkeys(tag for own in lines for tag in own))}
        curves = [
            Curve(run.name, line, numbers[line], thin(_over(axis, run, points)))
            for run, own in zip(runs, lines, strict=True)
            for line, points in own.items()
        ]
        if panel is panels.BENCHMARKS and not curves:
            continue
        unit = unit_of((*metrics_of(StepRecord, panel), *metrics_of(EvaluationRecord, panel)))
        ends = (unit.low, unit.high) if unit is not None else (None, None)
        drawn.append(Plot(panel.title, tuple(curves), *ends))
    return drawn


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[Point, ...]:
    """Reduce to at most `most` points, each the mean of its neighbours; None if none of these was measured.

    The number of neighbours is a power of two, so that most points of a growing curve stay the same.
    """
    width = 1
    while math.ceil(len(points) / width) > most:
        width *= 2
    return tuple(_mean(points[start : start + width]) for start in range(0, len(points), width))


def _mean(points: Sequence[Point]) -> Point:
    places = [x for x, y in points if y is not None] or [x for x, _ in points]
    return math.fsum(places) / len(places), mean(y for _, y in points)


def _over(axis: Axis, run: RunHistory, points: Sequence[Point]) -> list[Point]:
    """Convert points over steps to points over `axis`."""
    if axis == "step":
        return list(points)
    tokens = accumulate(record.generated_tokens for record in run.steps)
    until = {0: 0, **{record.step: total for record, total in zip(run.steps, tokens, strict=True)}}
    return [(float(until[int(step)]), value) for step, value in points if int(step) in until]


def _lines(run: RunHistory, panel: Panel) -> dict[str, list[Point]]:
    """The curves of a panel over steps, by tag: those of the steps, then those of the evaluations."""
    return _points(run.steps, panel) | _points(run.evaluations, panel)


def _points(records: Sequence[StepRecord] | Sequence[EvaluationRecord], panel: Panel) -> dict[str, list[Point]]:
    steps = [float(record.step) for record in records]
    return {tag: list(zip(steps, found.values, strict=True)) for tag, found in series(records, panel).items()}
