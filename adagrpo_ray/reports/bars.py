"""Bar charts: mean reward and resamples by interval of steps, and the result of resampling by rung."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from adagrpo_ray.reports.chart import Chart
from adagrpo_ray.reports.drawing import bars, key, panels, titled
from adagrpo_ray.reports.run_data import Run
from adagrpo_ray.runs.measured import ratio
from adagrpo_ray.runs.summary import Interval, intervals

T = TypeVar("T")


def by_interval(runs: Sequence[Run], length: int) -> Chart:
    """Mean reward and resamples of every `length` steps; for a single run also how many met the criterion."""
    cut = [intervals(run.history.steps, length) for run in runs]
    names = [_name(interval) for interval in max(cut, key=len)]
    figure, (rewards, resamples) = panels(2, [run.label for run in runs], filled=True)
    bars(rewards, names, [_filled([i.reward for i in c], len(names), None) for c in cut], decimals=2)
    titled(rewards, "Average reward", "steps", "mean reward of first attempts")
    counts = [[i.resamples for i in c] for c in cut]
    if len(runs) == 1:
        steps = runs[0].history.steps
        met = [
            sum(sum(record.rescued) for record in steps[start : start + length])
            for start in range(0, len(steps), length)
        ]
        bars(resamples, names, [met, [all_ - some for all_, some in zip(counts[0], met, strict=True)]], stacked=True)
        key(resamples, ["met the criterion", "did not"])
    else:
        bars(resamples, names, [_filled(own, len(names), None) for own in counts])
    titled(resamples, "Resamples", "steps", "groups sampled again")
    return Chart(
        "intervals",
        "Average reward and resamples",
        f"Bars are for {length} step{'s' if length > 1 else ''} each. Rewards are of first attempts: resampling until "
        "one completion is correct would raise them.",
        figure,
    )


def by_rung(runs: Sequence[Run]) -> Chart | None:
    """Groups sampled again on each rung, and how many of them then met the criterion; None if there is no rung."""
    rungs = max(len(run.summary.resamples) for run in runs)
    if not rungs:
        return None
    names = [str(rung) for rung in range(rungs)]
    again = [_filled(run.summary.resamples, rungs, 0) for run in runs]
    met = [_filled(run.summary.rescued, rungs, 0) for run in runs]
    shares: list[list[float | None]] = [
        [ratio(some, all_) for some, all_ in zip(*pair, strict=True)] for pair in zip(met, again, strict=True)
    ]
    drawn: list[Sequence[Sequence[float | None]]] = [again, met, shares]
    figure, axes = panels(3, [run.label for run in runs], filled=True)
    for panel, title, unit, series in zip(
        axes,
        ("Sampled again", "Met the criterion then", "Share that met it"),
        ("groups", "groups", "share of groups"),
        drawn,
        strict=True,
    ):
        bars(panel, names, series, decimals=2 if series is shares else 0)
        titled(panel, title, "rung", unit)
    return Chart(
        "rescued",
        "Result of resampling",
        "A rung is a set of sampling parameters of the ladder; the first one is rung 0.",
        figure,
    )


def _name(interval: Interval) -> str:
    return f"{interval.first}\N{EN DASH}{interval.last}" if interval.last > interval.first else str(interval.first)


def _filled(values: Sequence[T], count: int, value: T) -> list[T]:
    """`values`, padded with `value` to `count`: a run may be shorter than another one, or have fewer rungs."""
    return [*values, *[value] * (count - len(values))]
