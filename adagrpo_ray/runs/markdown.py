"""Escapes text of users for Markdown, so that it is shown literally."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"[&<>|\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that Markdown, or HTML in Markdown, would interpret."""


def literal(text: str) -> str:
    """`text` for a line or a table cell of Markdown, with all markup escaped."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text)


def cell(markdown: str) -> str:
    """`markdown` for a table cell: on one line, with its bars escaped."""
    return " ".join(markdown.split()).replace("|", "\\|")


def code(text: str) -> str:
    """`text` as inline code, delimited by more backquotes than it has in a row."""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{ticks}{space}{' '.join(text.split())}{space}{ticks}"


def fenced(text: str, language: str = "text") -> str:
    """`text` as a block of code, fenced by more backquotes than it has in a row."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}\n"
