"""The figures of a report, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adagrpo_ray.reports.bars import by_interval, by_rung
from adagrpo_ray.reports.chart import Chart
from adagrpo_ray.reports.curves import accuracy, benchmarks, curves
from adagrpo_ray.reports.reliability import reliability
from adagrpo_ray.reports.run_data import Run
from adagrpo_ray.runs import panels

CURVES = (
    *(panels.TOKENS, panels.REWARDS, panels.PHASES, panels.STALENESS),
    *(panels.OFF_POLICY, panels.POLICY, panels.COMPLETIONS),
)
"""The panels that follow the figures about resampling."""

OF_EPISODES = (panels.EPISODES, panels.TOOLS)
"""The panels of runs with an environment."""


def charts(runs: Sequence[Run], interval: int) -> Iterator[Chart]:
    """Yield all figures; each bar is for `interval` steps."""
    longest = max(len(run.history.steps) for run in runs)
    window = 1 + 2 * (longest // (50 if len(runs) == 1 else 16))
    yield by_interval(runs, interval)
    yield accuracy(runs, "generated tokens", window)
    yield accuracy(runs, "step", window)
    if on_benchmarks := benchmarks(runs):
        yield on_benchmarks
    yield from curves(runs, panels.ZERO_STD, window)
    if rescued := by_rung(runs):
        yield rescued
    if calibrated := reliability(runs):
        yield calibrated
        yield from curves(runs, panels.CALIBRATION, window)
    for panel in CURVES:
        yield from curves(runs, panel, window, total=panel is panels.TOKENS)
    if any(record.episodes_turns_mean is not None for run in runs for record in run.history.steps):
        for panel in OF_EPISODES:
            yield from curves(runs, panel, window)
