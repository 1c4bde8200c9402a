"""Colours of a report, for light and dark pages, and for colour-blind readers.

Blue and orange are those of Okabe and Ito. The others were chosen so that any two colours differ, for each kind of
colour vision, by at least 9 (OKLab, times 100) on light pages and 12 on dark ones, and have a contrast of 3 to 1 to the
page. Series differ in their markers too.
"""

from __future__ import annotations

from typing import Literal

SURFACE, INK, MUTED, GRID = "#fefefe", "#1d1d1b", "#5c5b57", "#dddbd5"
MOST = 12
"""Largest number of series that can be distinguished."""
SERIES = ("#0072b2", "#d55e00", "#3da57d", "#5a1a4a", "#b07ae0", "#3d4a00")
MARKERS = ("o", "s", "D", "^", "v", "P")

LIGHT = dict(
    zip(
        ["--surface", "--ink", "--muted", "--grid", *(f"--series-{n}" for n in range(len(SERIES)))],
        [SURFACE, INK, MUTED, GRID, *SERIES],
        strict=True,
    )
)
"""CSS variables and their values on a light page; figures refer to the variables."""

DARK = dict(
    zip(
        LIGHT,
        ["#1b1b1a", "#f1f0ec", "#b4b2ab", "#3b3a37", "#4aa3e0", "#f07c28", "#8ff0dc", "#a05a80", "#6f66e8", "#f2d43a"],
        strict=True,
    )
)


def colour(number: int) -> str:
    """Colour of a series; the colours repeat after the last one."""
    return SERIES[number % len(SERIES)]


def marker(number: int) -> str:
    """Marker of a series."""
    return MARKERS[number % len(MARKERS)]


def hatch(number: int) -> str | None:
    """Hatch of a bar; None for the first series of each colour."""
    return None if number < len(SERIES) else "//"


def dash(number: int) -> Literal["-", "--"]:
    """Line style of a series: solid for the first one of each colour, else dashed."""
    return "-" if number < len(SERIES) else "--"
