"""Text of users in Markdown: as it is, whatever it holds."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"[&<>|\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown, or the HTML in it, would take for its own."""


def literal(text: str) -> str:
    """`text` in a line or a cell of Markdown: none of it is markup."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text)


def cell(markdown: str) -> str:
    """`markdown` in a cell of a table: in one line, and no bar in it ends the cell."""
    return " ".join(markdown.split()).replace("|", "\\|")


def code(text: str) -> str:
    """`text` in a line as it is, whatever it holds: between more backquotes than stand together in it."""
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{ticks}{space}{' '.join(text.split())}{space}{ticks}"


def fenced(text: str, language: str = "text") -> str:
    """`text` as a block of code, whatever it holds."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}\n"
