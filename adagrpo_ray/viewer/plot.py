"""Draws plots as inline SVG.

Gradio's plots are not used: here a colour is a run and a dash a metric, but `LinePlot` supports only colours, and sends
every point of every plot as a table. `Plot` with Matplotlib takes most of a second of CPU for each update, on a machine
that may be training, and replaces whole images. Inline SVG takes milliseconds, and `HTML` updates only the attributes
that differ, so that a live curve grows without flicker.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from html import escape

from adagrpo_ray.viewer.run_curves import Axis, Curve, Plot

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 470, 10, 200
COLORS = ("#3b82f6", "#f97316", "#10b981", "#e11d48", "#8b5cf6", "#ca8a04", "#06b6d4", "#78716c")
"""Colours of the runs, in their order; distinct on white and on black."""
DASHES = ("", "6 4", "2 3", "9 3 2 3", "14 4", "9 3 2 3 2 3")
"""Dashes of the metrics in one plot, in their order."""
COLUMNS = 48
"""Number of columns of a plot that show the values of the curves as a tooltip."""

STYLE = """
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 12px 20px; }
.plots figure { margin: 0; min-width: 0; }
.plots figcaption { font-weight: 600; font-size: 14px; display: flex; flex-wrap: wrap; gap: 2px 12px; }
.plots figcaption span { font-weight: 400; font-size: 12px; white-space: nowrap; }
.plots svg { width: 100%; height: auto; display: block; overflow: visible; }
.plots figcaption svg { display: inline; width: 26px; vertical-align: middle; }
.plots text { font-size: 11px; fill: currentColor; opacity: .75; }
.plots .grid { stroke: currentColor; stroke-opacity: .15; }
.plots polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-opacity: .9; }
.plots rect { fill: transparent; }
.plots rect:hover { fill: currentColor; fill-opacity: .12; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 4px 0 10px; font-size: 14px; }
.legend b { display: inline-block; width: 22px; height: 4px; margin-right: 6px; vertical-align: middle; }
"""


def page(runs: Sequence[str], plots: Sequence[Plot], axis: Axis) -> str:
    """The legend of the runs, and all plots, as HTML without scripts."""
    colors = {run: COLORS[number % len(COLORS)] for number, run in enumerate(runs)}
    legend = "".join(f'<span><b style="background:{color}"></b>{escape(run)}</span>' for run, color in colors.items())
    xs = [x for plot in plots for curve in plot.curves for x, _ in curve.points]
    across = _Scale(min([*xs, 0.0]), max([*xs, 1.0]), LEFT, RIGHT)  # shared by all plots, so that they can be compared
    figures = "".join(_figure(plot, colors, across, axis) for plot in plots)
    return f'<div class="legend">{legend}</div><div class="plots">{figures}</div>'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, at most `most` + 1 of them."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    width = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    return [n * width for n in range(math.ceil(low / width - 1e-9), math.floor(high / width + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in a few characters: '0.25', '1,200', '3.4 M'."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _figure(plot: Plot, colors: dict[str, str], across: _Scale, axis: Axis) -> str:
    ys = [y for curve in plot.curves for _, y in curve.measured]
    lines = sorted({(curve.number, curve.line) for curve in plot.curves if curve.measured})
    caption = escape(plot.title) + ("".join(_key(number, line) for number, line in lines) if len(lines) > 1 else "")
    if not ys:
        inside = (
            f'<text x="{(LEFT + RIGHT) / 2}" y="{(TOP + BOTTOM) / 2}" text-anchor="middle">nothing measured yet</text>'
        )
    else:
        up = _Scale(*_ends(plot, min(ys), max(ys)), BOTTOM, TOP)
        inside = "".join(
            [
                _grid(across, up, axis),
                *(_curve(curve, colors[curve.run], across, up) for curve in plot.curves if curve.measured),
                _columns(plot.curves, across, axis),
            ]
        )
    label = escape(plot.title, quote=True)
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inside}</svg></figure>'
    )


class _Scale:
    """Maps values to coordinates of the image, along one axis."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self._start, self._end = low, high, start, end

    def __call__(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self._start + share * (self._end - self._start):.1f}"


def _ends(plot: Plot, lowest: float, highest: float) -> tuple[float, float]:
    low = lowest if plot.low is None else min(plot.low, lowest)
    high = highest if plot.high is None else max(plot.high, highest)
    if low == high:
        return (low, low + 1) if plot.low is not None else (low - 0.5, low + 0.5)
    room = 0.05 * (high - low)
    return low if low == plot.low else low - room, high if high == plot.high else high + room


def _key(number: int, line: str) -> str:
    """The dash and the name of a metric, for the legend."""
    stroke = f'stroke="currentColor" stroke-width="2" stroke-dasharray="{DASHES[number % len(DASHES)]}"'
    dash = f'<svg viewBox="0 0 26 8" aria-hidden="true"><line x1="0" y1="4" x2="26" y2="4" {stroke}/></svg>'
    return f"<span>{dash} {escape(line)}</span>"


def _grid(across: _Scale, up: _Scale, axis: Axis) -> str:
    parts = []
    for value in ticks(up.low, up.high, 4):
        y = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{RIGHT}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y}" text-anchor="end" dominant-baseline="middle">{short(value)}</text>')
    whole = [value for value in ticks(across.low, across.high, 6) if abs(value - round(value)) < 1e-9]
    for value in whole:  # no ticks at fractions of a step
        x = across(value)
        parts.append(f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{BOTTOM}"/>')
        parts.append(f'<text x="{x}" y="{BOTTOM + 14}" text-anchor="middle">{short(value)}</text>')
    parts.append(f'<text x="{RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{axis}</text>')
    return "".join(parts)


def _curve(curve: Curve, color: str, across: _Scale, up: _Scale) -> str:
    """A line for each stretch between gaps, with dots if there are few points, or if a stretch is a single point."""
    dash = DASHES[curve.number % len(DASHES)]
    few = len(curve.measured) <= 12  # as for evaluations, or a run that has just begun
    drawn = ""
    for stretch in curve.stretches():
        places = [(across(x), up(y)) for x, y in stretch]
        line = " ".join(f"{x},{y}" for x, y in places)
        drawn += f'<polyline points="{line}" stroke="{color}" stroke-dasharray="{dash}"/>'
        if few or len(places) == 1:
            drawn += "".join(f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places)
    return drawn


def _columns(curves: Iterable[Curve], across: _Scale, axis: Axis) -> str:
    """Invisible columns along the x-axis, whose tooltips have the values of the curves."""
    width = (RIGHT - LEFT) / COLUMNS
    known = [(curve, points, [x for x, _ in points]) for curve in curves if (points := curve.measured)]
    parts = []
    for number in range(COLUMNS):
        end = across.low + (number + 1) / COLUMNS * (across.high - across.low)
        here = [(curve, points, bisect_right(xs, end) - 1) for curve, points, xs in known]
        values = [
            f"{curve.run}, {curve.line}: {short(points[at][1])} at {short(points[at][0])}"
            for curve, points, at in here
            if at >= 0
        ]
        if values:
            text = escape("\n".join([f"up to {axis} {short(end)}", *values]))
            x = f"{LEFT + number * width:.1f}"
            box = f'x="{x}" y="{TOP}" width="{width:.1f}" height="{BOTTOM - TOP}"'
            parts.append(f"<rect {box}><title>{text}</title></rect>")
    return "".join(parts)
