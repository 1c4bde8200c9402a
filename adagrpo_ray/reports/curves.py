"""Figures of curves: one run by what was measured, several runs by run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Literal

from matplotlib.axes import Axes

from adagrpo_ray.reports.chart import Chart
from adagrpo_ray.reports.drawing import curve, empty, ground, panels, share, titled
from adagrpo_ray.reports.run_data import Run
from adagrpo_ray.runs.records import StepRecord
from adagrpo_ray.runs.wording import difficulties

MOST_PANELS = 9
"""Of one figure: three rows. What does not fit is in the tables."""


@dataclass(frozen=True)
class Quantity:
    """What is measured of a step."""

    name: str
    of: Callable[[StepRecord], float | None]


def curves(
    runs: Sequence[Run],
    quantities: Sequence[Quantity],
    *,
    unit: str | None,
    window: int = 1,
    total: bool = False,
    name: str,
    title: str,
    caption: str,
) -> Chart:
    """Each quantity by step, a panel each; of a single run all in one panel, if they have a `unit` in common.

    Curves are means over `window` steps, or running totals.
    """
    quantities = quantities[:MOST_PANELS]
    together = unit is not None and len(runs) == 1
    names = [q.name for q in quantities] if together else [run.label for run in runs]
    figure, axes = panels(1 if together else len(quantities), names)
    for number, quantity in enumerate(quantities):
        panel = axes[0 if together else number]
        for of_run, run in enumerate(runs):
            steps = run.history.steps
            values = [quantity.of(record) for record in steps]
            curve(
                panel,
                [record.step for record in steps],
                list(accumulate(value or 0.0 for value in values)) if total else values,
                number if together else of_run,
                window=window,
                points=len(runs) == 1,
            )
        titled(panel, "" if together and len(quantities) > 1 else quantity.name, "step", unit or "")
    for panel in axes:
        if not empty(panel):
            share(panel) if unit == "share of groups" else ground(panel)
    return Chart(name, title, caption if total else said(caption, window), figure)


def accuracy(runs: Sequence[Run], x: Literal["generated tokens", "step"], window: int) -> Chart:
    """Accuracy of first attempts and on held-out prompts against `x`: of all prompts, and of each difficulty."""
    steps = (record.accuracy_by_difficulty for run in runs for record in run.history.steps)
    measured = (record.accuracy_by_difficulty for run in runs for record in run.history.evaluations)
    named = difficulties(name for by_difficulty in chain(steps, measured) for name in by_difficulty)[: MOST_PANELS - 1]
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
        caption = "First attempts alone: resampling until one completion is right would raise the accuracy."
    name = "tokens" if x == "generated tokens" else "steps"
    return Chart(f"accuracy-by-{name}", f"Accuracy by {x.replace('step', 'steps')}", said(caption, window), figure)


def said(caption: str, window: int) -> str:
    """The caption, and what curves are means over."""
    return caption if window == 1 else f"{caption} Curves are means over {window} steps."


def _accuracy(axes: Axes, run: Run, x: str, difficulty: str | None, window: int, numbers: tuple[int, int]) -> None:
    """Both curves of a run, the held-out prompts in front."""
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
