"""Renders a text of a run as HTML: a long one is folded, and a very long one loses its middle."""

from __future__ import annotations

from html import escape

LONG, SHORT = 20_000, 110
"""Largest number of characters of a text that is shown in full, and of the first line of a folded text."""


def folded(text: str) -> str:
    """The escaped text."""
    if len(text) <= SHORT and "\n" not in text:
        return escape(text) or '<span class="note">empty</span>'
    cut = text
    if len(text) > LONG:
        left_out = len(text) - LONG
        cut = f"{text[: LONG // 2]}\n\n[... {left_out:,} characters left out ...]\n\n{text[-LONG // 2 :]}"
    return f"<details><summary>{summary(text)} ({len(text):,} characters)</summary><pre>{escape(cut)}</pre></details>"


def summary(text: str) -> str:
    """The beginning of a text in one line, escaped."""
    first = " ".join(text[: 2 * SHORT].split())[:SHORT]
    return escape(first) if first == text else f"{escape(first)} …"
