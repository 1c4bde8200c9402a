"""The curves of a run: which figures are drawn, over what, and by how many points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from adagrpo_ray.runs.measured import mean, ratio
from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.records import StepRecord

Axis = Literal["step", "generated tokens"]
Point = tuple[float, float | None]
"""Its place on the x axis, and the value there; None leaves a gap."""

AXES: tuple[Axis, ...] = ("step", "generated tokens")
MOST_POINTS = 150
"""Of one curve: more of them would be noise between the same pixels."""


@dataclass(frozen=True)
class Curve:
    """A figure of one run: `line` says which of the plot's figures it is, `number` its place among them."""

    run: str
    line: str
    number: int
    points: tuple[Point, ...]

    @property
    def measured(self) -> list[tuple[float, float]]:
        """The points without the gaps."""
        return [(x, y) for x, y in self.points if y is not None]

    def stretches(self) -> list[list[tuple[float, float]]]:
        """The points from gap to gap: what a line may connect."""
        found: list[list[tuple[float, float]]] = [[]]
        for x, y in self.points:
            if y is not None:
                found[-1].append((x, y))
            elif found[-1]:
                found.append([])
        return [stretch for stretch in found if stretch]


@dataclass(frozen=True)
class Plot:
    """What is drawn in one plot. `low` and `high` are where its y axis ends if no value lies beyond them."""

    title: str
    curves: tuple[Curve, ...]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Figure:
    """A figure of every step, or of every measurement on held-out prompts; None if it was not measured."""

    title: str
    lines: Callable[[RunHistory], Mapping[str, Sequence[Point]]]  # over steps
    low: float | None = 0.0
    high: float | None = None


def plots(runs: Sequence[RunHistory], axis: Axis) -> list[Plot]:
    """All plots of these runs, in their order."""
    drawn = []
    for figure in FIGURES:
        lines = [figure.lines(run) for run in runs]
        numbers = {line: number for number, line in enumerate(dict.fromkeys(name for own in lines for name in own))}
        curves = [
            Curve(run.name, line, numbers[line], thin(_over(axis, run, points)))
            for run, own in zip(runs, lines, strict=True)
            for line, points in own.items()
        ]
        drawn.append(Plot(figure.title, tuple(curves), figure.low, figure.high))
    return drawn


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[Point, ...]:
    """At most `most` points: means over as many neighbours as it takes; None if none of these was measured.

    That many are a power of two, so that a curve which grows keeps its points for as long as it can.
    """
    width = 1
    while math.ceil(len(points) / width) > most:
        width *= 2
    return tuple(_mean(points[start : start + width]) for start in range(0, len(points), width))


def _mean(points: Sequence[Point]) -> Point:
    places = [x for x, y in points if y is not None] or [x for x, _ in points]
    return math.fsum(places) / len(places), mean(y for _, y in points)


def _over(axis: Axis, run: RunHistory, points: Sequence[Point]) -> list[Point]:
    """The same points, over the axis that is wanted."""
    if axis == "step":
        return list(points)
    tokens = accumulate(record.generated_tokens for record in run.steps)
    until = {0: 0, **{record.step: total for record, total in zip(run.steps, tokens, strict=True)}}
    return [(float(until[int(step)]), value) for step, value in points if int(step) in until]


def _steps(run: RunHistory, value: Callable[[StepRecord], float | None]) -> list[Point]:
    return [(float(record.step), value(record)) for record in run.steps]


def _held_out(run: RunHistory) -> list[Point]:
    return [(float(record.step), record.accuracy) for record in run.evaluations]


def _by_rung(run: RunHistory) -> dict[str, list[Point]]:
    """Resamples a step, a line for every rung that some step had."""
    height = max((len(record.resamples) for record in run.steps), default=0)

    def count(rung: int) -> Callable[[StepRecord], float]:
        return lambda record: record.resamples[rung] if rung < len(record.resamples) else 0

    return {f"rung {rung}": _steps(run, count(rung)) for rung in range(height)}


def _rate(record: StepRecord) -> float | None:
    return ratio(record.generated_tokens, record.seconds)


FIGURES: tuple[_Figure, ...] = (
    _Figure("Mean reward of first attempts", lambda run: {"reward": _steps(run, lambda r: r.reward_mean)}, low=None),
    _Figure(
        "Accuracy",
        lambda run: {"first attempts": _steps(run, lambda r: r.accuracy), "held-out": _held_out(run)},
        high=1.0,
    ),
    _Figure("Resamples a step", _by_rung),
    _Figure("Completions of a first attempt", lambda run: {"group size": _steps(run, lambda r: r.group_size)}),
    _Figure(
        "Share of groups without spread of rewards",
        lambda run: {
            "first attempts": _steps(run, lambda r: r.flat_before),
            "trained on": _steps(run, lambda r: r.flat_after),
        },
        high=1.0,
    ),
    _Figure("Generated tokens a second", lambda run: {"tokens a second": _steps(run, _rate)}),
    _Figure("Staleness, in weight versions", lambda run: {"staleness": _steps(run, lambda r: r.staleness)}, high=1.0),
)
"""In the order in which they are shown."""
