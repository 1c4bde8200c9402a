"""The page of runs."""

from __future__ import annotations


def build(folder: str) -> None:
    """Lay out the page of the runs in `folder`."""
