"""Draws panels with curves and bars. Figures are created without pyplot, so that no global state changes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from adagrpo_ray.reports import palette

WIDTH, LEFT, RIGHT, TITLE, BOTTOM, LEGEND = 10.0, 0.8, 0.12, 0.4, 0.55, 0.26
"""Width of a figure and margins of its panels, in inches. Automatic layout would take as long as drawing."""
SMALL_PT, TEXT_PT, TITLE_PT = 7.5, 8.5, 9.5
FEW, MANY = 30, 1000
"""Numbers of points: up to FEW points have markers; of a curve with more than MANY, MANY are drawn."""


def panels(count: int, names: Sequence[str] = (), *, filled: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most three in a row, below a legend with the names of the series.

    There is no legend for a single series. `filled`: the series are bars, not curves.
    """
    texts = [plain(name) for name in names] if len(names) > 1 else []
    in_a_row = max(1, min(len(texts), int(115 / (max(map(len, texts), default=0) + 7))))
    columns = count if count < 4 else 2 if count == 4 else 3
    width = WIDTH / columns - LEFT - RIGHT
    high = 2.6 if columns < 3 else 1.9
    above = LEGEND * math.ceil(len(texts) / in_a_row)
    height = above + math.ceil(count / columns) * (TITLE + high + BOTTOM)
    figure = Figure(figsize=(WIDTH, height))
    if texts:
        figure.legend(
            [_key(number, filled) for number in range(len(texts))],
            texts,
            loc="upper left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=in_a_row,
            frameon=False,
            fontsize=TITLE_PT,
            labelcolor=palette.INK,
        )
    axes = []
    for number in range(count):
        row, column = divmod(number, columns)
        left = column * WIDTH / columns + LEFT
        low = height - above - (row + 1) * (TITLE + high + BOTTOM) + BOTTOM
        axes.append(figure.add_axes((left / WIDTH, low / height, width / WIDTH, high / height)))
        _plain_panel(axes[-1])
    return figure, axes


def titled(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the titles of a panel and its axes. Ticks of steps are integers, those of tokens have suffixes (k, M)."""
    # A fixed height, because matplotlib takes time to find one.
    axes.set_title(plain(title), fontsize=TITLE_PT, color=palette.INK, loc="left", y=1.0, pad=7)
    axes.set_xlabel(x, fontsize=TEXT_PT, color=palette.MUTED)
    axes.set_ylabel(y, fontsize=TEXT_PT, color=palette.MUTED)
    if x == "step" or x.endswith(" tokens"):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if x.endswith(" tokens"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.yaxis.set_major_formatter(
        EngFormatter(sep=" ") if y == "tokens" else FuncFormatter(lambda value, _: f"{value:.6g}")
    )


def ground(axes: Axes) -> None:
    """Let the y-axis begin at 0, unless that would flatten the curves, and centre a single step."""
    (first, last), (lowest, highest) = axes.dataLim.intervalx, axes.dataLim.intervaly
    if first == last:
        axes.set_xlim(first - 1, first + 1)
    if lowest >= 0 and (lowest < 0.5 * highest or math.isclose(lowest, highest)):
        axes.set_ylim(0.0, 1.1 * highest or 1.0)


def share(axes: Axes) -> None:
    """Scale the y-axis for shares, from 0 to 1, and centre a single step."""
    ground(axes)
    axes.set_ylim(-0.04, 1.04)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])


def curve(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float | None],
    number: int,
    *,
    window: int = 1,
    points: bool = True,
    light: bool = False,
) -> None:
    """Draw series `number` as means over `window` values, with the values themselves faint behind it if `points`.

    None in `y` is a value that was not measured. A window without a measured value leaves a gap; a point between two
    gaps has a marker. `light`: draw a thin line without other markers, behind another curve of the same colour.
    Of more than MANY values, MANY means are drawn.
    """
    at, values = np.array(x, dtype=float), np.array(y, dtype=float)  # None becomes NaN
    if np.isnan(values).all():
        return
    means = smooth(values, window)
    if len(values) > MANY:
        drawn = np.linspace(0, len(values) - 1, MANY).astype(int)
        at, means = at[drawn], means[drawn]
    elif window > 1 and points:
        axes.plot(at, values, color=palette.colour(number), linewidth=0.6, alpha=0.25)
    there = ~np.isnan(means)
    marked = there if there.sum() <= FEW and not light else _alone(there)
    axes.plot(
        at,
        means,
        color=palette.colour(number),
        linestyle=palette.dash(number),
        linewidth=1.0 if light else 1.8,
        marker=palette.marker(number) if marked.any() else None,
        markevery=marked.nonzero()[0].tolist(),
        markersize=4.5,
    )


def bars(
    axes: Axes,
    names: Sequence[str],
    series: Sequence[Sequence[float | None]],
    *,
    stacked: bool = False,
    decimals: int = 0,
) -> None:
    """Draw one bar of each series at each of `names`: side by side, or `stacked` on each other.

    None is a value that was not measured, and has no bar.
    """
    groups = np.arange(len(names), dtype=float)
    wide = 0.8 if len(names) > 4 else 0.2 * len(names)
    width = wide if stacked else wide / len(series)
    below = np.zeros(len(names))
    few = len(names) * (1 if stacked else len(series)) <= 12
    for number, values in enumerate(series):
        heights = np.nan_to_num(np.array(values, dtype=float))
        axes.bar(
            groups if stacked else groups + (number - (len(series) - 1) / 2) * width,
            heights,
            width,
            bottom=below if stacked else 0.0,
            color=palette.colour(number),
            hatch=palette.hatch(number),
            edgecolor=palette.SURFACE,
            linewidth=0.8 if few else 0.0,
        )
        below = below + heights
        if few and not stacked:
            labels = ["" if v is None else f"{v:,.{decimals}f}" for v in values]
            axes.bar_label(axes.containers[-1], labels, fontsize=SMALL_PT, color=palette.MUTED, padding=2)  # type: ignore[arg-type]
    if few and stacked:
        labels = [f"{v:,.{decimals}f}" for v in below]
        axes.bar_label(axes.containers[-1], labels, fontsize=SMALL_PT, color=palette.MUTED, padding=2)  # type: ignore[arg-type]
    low, high = np.nan_to_num(axes.dataLim.intervaly)
    axes.set_ylim(1.12 * min(low, 0.0), 1.12 * max(high, 0.0) or (1.0 if low == 0.0 else 0.0))
    if not decimals:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.axhline(0.0, color=palette.MUTED, linewidth=0.7)
    inches = axes.get_position().width * WIDTH
    room = max(1, int(inches / (0.065 * max(map(len, names)) + 0.08)))  # number of names that fit side by side
    shown = range(0, len(names), math.ceil(len(names) / room))
    axes.set_xticks(shown, [plain(names[at]) for at in shown])
    axes.set_xlim(-0.6, len(names) - 0.4)


def key(axes: Axes, names: Sequence[str]) -> None:
    """Add a legend of the stacked bars above one panel."""
    axes.legend(
        [_key(number, True) for number in range(len(names))],
        names,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderpad=0.0,
        ncols=len(names),
        frameon=False,
        fontsize=TEXT_PT,
        labelcolor=palette.INK,
    )


def empty(axes: Axes) -> bool:
    """Whether nothing was drawn in a panel; writes "not measured" into it if so."""
    if axes.has_data():
        return False
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=palette.MUTED)
    return True


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Means of the `window` values around each value, fewer at the ends; shape [N], as `values`.

    NaN is a value that was not measured, and is left out. A mean is NaN if no value in its window was measured.
    """
    ones, there = np.ones(min(window, len(values))), ~np.isnan(values)
    counts = np.convolve(there.astype(float), ones, "same")
    sums = np.convolve(np.where(there, values, 0.0), ones, "same")
    return np.asarray(np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0))


def _alone(there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of the measured points without a measured neighbour, which no line connects; shape [N], as `there`."""
    around = np.pad(there, 1)
    return np.asarray(there & ~around[:-2] & ~around[2:])


def plain(text: str, most: int = 44) -> str:
    """`text` escaped for matplotlib: no formula, no character that the font lacks, at most `most` characters long."""
    if len(text) > most:
        text = f"{text[: most // 2]}\N{HORIZONTAL ELLIPSIS}{text[-(most // 2) + 1 :]}"
    shown = "".join(c if c.isprintable() and ord(c) in _glyphs() else ascii(c)[1:-1] for c in text)
    return shown.replace("$", r"\$")


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG image with a light background."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=140, facecolor=palette.SURFACE)
    return file.getvalue()


def as_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for an HTML page, coloured by the CSS variables of the page.

    `name` is the prefix of its ids, so that several figures can be on one page.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", facecolor="none", metadata=nothing)
    whole = file.getvalue()
    text = re.sub(r"<!--.*?-->\n?", "", whole[whole.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for variable, colour in palette.LIGHT.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r'^(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text)


def _key(number: int, filled: bool) -> Patch | Line2D:
    """The legend's symbol of a series."""
    colour = palette.colour(number)
    if filled:
        return Patch(facecolor=colour, hatch=palette.hatch(number), edgecolor=palette.SURFACE)
    return Line2D([], [], color=colour, linestyle=palette.dash(number), marker=palette.marker(number), markersize=4.5)


def _plain_panel(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="y", color=palette.GRID, linewidth=0.7)
    axes.tick_params(colors=palette.MUTED, labelsize=TEXT_PT - 0.5, length=3)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(palette.MUTED)
        spine.set_linewidth(0.7)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
