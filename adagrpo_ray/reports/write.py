"""Draws a report and saves it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adagrpo_ray.errors import ConfigError
from adagrpo_ray.reports import palette
from adagrpo_ray.reports.charts import charts
from adagrpo_ray.reports.drawing import as_png, as_svg
from adagrpo_ray.reports.page import Drawing, page
from adagrpo_ray.reports.run_data import Run, labelled
from adagrpo_ray.storage import places as storage

PAGE, PLOTS = "report.html", "plots"
MOST_BARS = 500


def write_report(runs: Sequence[Run], out: str, interval: int | None = None) -> str:
    """Save the page of `runs`, and its figures as PNG, in `out`, a path or a URL. Returns the path or URL of the page.

    Each bar is for `interval` steps, by default for a tenth of the longest run. Raises ResourceError if `out` cannot be
    written, and ConfigError if there are too many runs or bars.
    """
    if len(runs) > palette.MOST:
        raise ConfigError(f"one figure cannot show {len(runs)} runs distinctly; give {palette.MOST} or fewer")
    runs = labelled(runs)
    steps = max(len(run.history.steps) for run in runs)
    length = interval or math.ceil(steps / 10)
    if steps / length > MOST_BARS:
        raise ConfigError(
            f"--interval={interval} gives more than {MOST_BARS} bars of {steps:,} steps; "
            f"give {steps // MOST_BARS + 1} or more"
        )
    drawings = []
    with storage.outgoing(storage.join(out, PLOTS)) as folder:
        for chart in charts(runs, length):
            (folder / f"{chart.name}.png").write_bytes(as_png(chart.figure))
            drawings.append(Drawing(chart.name, chart.title, chart.caption, as_svg(chart.figure, chart.name)))
    storage.leave(out, PAGE, page(runs, drawings))
    return storage.join(out, PAGE)
