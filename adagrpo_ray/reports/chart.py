"""A figure of a report with its title and caption."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """A figure; `name` is the name of its file."""

    name: str
    title: str
    caption: str
    figure: Figure
