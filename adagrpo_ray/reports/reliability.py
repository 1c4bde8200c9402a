"""The reliability plot: observed against expected success rates of first attempts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from adagrpo_ray.reports import palette
from adagrpo_ray.reports.chart import Chart
from adagrpo_ray.reports.drawing import SMALL_PT, curve, panels, share, titled
from adagrpo_ray.reports.run_data import Run

CAPTION = (
    "Of first attempts, by the success rate that was expected before them, in tenths. On the diagonal as many "
    "completions were correct as expected."
)


def reliability(runs: Sequence[Run]) -> Chart | None:
    """The shares of correct completions by expected success rate; None if no run expected any.

    Of a single run each point has its number of completions.
    """
    found = [points(run) for run in runs]
    if not any(found):
        return None
    figure, (axes,) = panels(1, [run.label for run in runs])
    axes.plot([0, 1], [0, 1], color=palette.MUTED, linewidth=0.7)
    for number, of_run in enumerate(found):
        curve(axes, [expected for expected, _, _ in of_run], [observed for _, observed, _ in of_run], number)
    titled(axes, "", "expected success rate", "observed success rate")
    share(axes)
    axes.set_xlim(-0.04, 1.04)
    if len(runs) == 1:
        for expected, observed, completions in found[0]:
            axes.annotate(
                f"{completions:,}",
                (expected, observed),
                xytext=(0, -11 if observed > 0.5 else 6),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL_PT,
                color=palette.MUTED,
            )
    caption = f"{CAPTION} Numbers are of completions." if len(runs) == 1 else CAPTION
    return Chart("reliability", "Expected and observed success rates", caption, figure)


def points(run: Run) -> list[tuple[float, float, int]]:
    """Expected and observed success rate of each tenth, with its number of completions, in ascending order."""
    tenths: dict[str, list[tuple[int, float, int]]] = defaultdict(list)
    for record in run.history.steps:
        for name, sums in record.reliability.items():
            tenths[name].append(sums)
    found = []
    for _, of_steps in sorted(tenths.items()):
        completions = sum(n for n, _, _ in of_steps)
        expected = sum(n for _, n, _ in of_steps) / completions
        found.append((expected, sum(n for _, _, n in of_steps) / completions, completions))
    return found
