"""Line charts of the metrics of one run, or of several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Literal

from matplotlib.axes import Axes

from adagrpo_ray.reports.chart import Chart
from adagrpo_ray.reports.drawing import curve, empty, ground, panels, share, titled
from adagrpo_ray.reports.run_data import Run
from adagrpo_ray.runs import units
from adagrpo_ray.runs.metric import Metric, series, unit_of
from adagrpo_ray.runs.panels import BENCHMARKS, Panel
from adagrpo_ray.runs.wording import difficulties

MOST_PANELS = 9
"""Panels of one figure by difficulty or function, in three rows. The tables have the others."""


def curves(runs: Sequence[Run], panel: Panel, window: int = 1, *, total: bool = False) -> Iterator[Chart]:
    """The metrics of a panel by step: those of a single run in the same axes if they share a unit, else in one each.

    Curves are means over `window` steps, or running totals. Yields nothing if no step has a metric of the panel.
    """
    found = [series(run.history.steps, panel) for run in runs]
    metrics = _few({tag: line.metric for lines in found for tag, line in lines.items()})
    if not metrics:
        return
    unit = unit_of(metrics.values())
    together = unit is not None and len(runs) == 1
    figure, axes = panels(1 if together else len(metrics), list(metrics) if together else [run.label for run in runs])
    for number, (tag, metric) in enumerate(metrics.items()):
        place = axes[0 if together else number]
        for of_run, (run, lines) in enumerate(zip(runs, found, strict=True)):
            values = lines[tag].values if tag in lines else [None] * len(run.history.steps)
            curve(
                place,
                [record.step for record in run.history.steps],
                list(accumulate(value or 0.0 for value in values)) if total else values,
                number if together else of_run,
                window=window,
                points=len(runs) == 1,
            )
        titled(place, "" if together and len(metrics) > 1 else tag, "step", metric.unit.name)
    for place in axes:
        if not empty(place):
            share(place) if unit is units.SHARE else ground(place)
    caption = f"{panel.caption} Running totals." if total else _with_window(panel.caption, window)
    yield Chart(panel.name, panel.title, caption, figure)


def _few(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics that are drawn: at most MOST_PANELS values of a metric with a label."""
    drawn: Counter[str] = Counter()
    kept = {}
    for tag, metric in metrics.items():
        drawn[metric.name] += 1
        if drawn[metric.name] <= MOST_PANELS:
            kept[tag] = metric
    return kept


def accuracy(runs: Sequence[Run], x: Literal["generated tokens", "step"], window: int) -> Chart:
    """Accuracy of first attempts and on held-out prompts over `x`, for all prompts and for each difficulty."""
    steps = (record.accuracy_by_difficulty for run in runs for record in run.history.steps)
    evaluated = (record.accuracy_by_difficulty for run in runs for record in run.history.evaluations)
    named = difficulties(name for by_difficulty in chain(steps, evaluated) for name in by_difficulty)[: MOST_PANELS - 1]
    alone = ["held-out prompts", "first attempts in training"]
    figure, axes = panels(1 + len(named), alone if len(runs) == 1 else [run.label for run in runs])
    for panel, difficulty in zip(axes, [None, *named], strict=True):
        for number, run in enumerate(runs):
            _accuracy(panel, run, x, difficulty, window, (number, number) if len(runs) > 1 else (0, 1))
        titled(panel, "all prompts" if difficulty is None else difficulty, x, "accuracy" if panel is axes[0] else "")
        if not empty(panel):
            share(panel)
    if len(runs) > 1:
        caption = "Thick: held-out prompts. Thin: first attempts in training."
    else:
        caption = "Of first attempts only: resampling until one completion is correct would raise the accuracy."
    name = "tokens" if x == "generated tokens" else "steps"
    title = f"Accuracy by {x.replace('step', 'steps')}"
    return Chart(f"accuracy-by-{name}", title, _with_window(caption, window), figure)


def benchmarks(runs: Sequence[Run]) -> Chart | None:
    """Accuracy on each benchmark by step; None if no run was evaluated on one."""
    evaluated = (record.benchmark_accuracy for run in runs for record in run.history.evaluations)
    names = [*dict.fromkeys(name for accuracies in evaluated for name in accuracies)]
    if not names:
        return None
    figure, axes = panels(len(names), [run.label for run in runs])
    for panel, name in zip(axes, names, strict=True):
        for number, run in enumerate(runs):
            found = run.history.evaluations
            curve(panel, [e.step for e in found], [e.benchmark_accuracy.get(name) for e in found], number)
        titled(panel, name, "step", "accuracy" if panel is axes[0] else "")
        if not empty(panel):
            share(panel)
    return Chart(BENCHMARKS.name, BENCHMARKS.title, BENCHMARKS.caption, figure)


def _with_window(caption: str, window: int) -> str:
    """The caption, with a note if curves are means over several steps."""
    return caption if window == 1 else f"{caption} Curves are means over {window} steps."


def _accuracy(axes: Axes, run: Run, x: str, difficulty: str | None, window: int, numbers: tuple[int, int]) -> None:
    """Draw both curves of a run, that of the held-out prompts in front."""
    steps, evaluations = run.history.steps, run.history.evaluations
    held_out, first = numbers
    curve(
        axes,
        [r.step for r in steps] if x == "step" else run.tokens,
        [r.accuracy if difficulty is None else r.accuracy_by_difficulty.get(difficulty) for r in steps],
        first,
        window=window,
        points=held_out != first,
        light=True,
    )
    curve(
        axes,
        [e.step if x == "step" else run.tokens_until(e.step) for e in evaluations],
        [e.accuracy if difficulty is None else e.accuracy_by_difficulty.get(difficulty) for e in evaluations],
        held_out,
    )
