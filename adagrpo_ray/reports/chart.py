"""A figure of a report and the words around it."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """`name` is that of its file, `caption` what there is to see."""

    name: str
    title: str
    caption: str
    figure: Figure
