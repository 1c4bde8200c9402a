"""rich, on whatever stream there is: a terminal, or a log that stands in for one."""

from __future__ import annotations

import os
from typing import TextIO, cast

from rich.console import Console


def rich_console(stream: TextIO, *, live: bool, width: int | None = None) -> Console:
    """A console on `stream` that redraws and colours only where it is `live`; `width` overrules what is found."""
    return Console(
        # A cast, because rich asks less of a stream than its types do.
        file=cast(TextIO, _Encodable(stream)),
        # Said outright: rich would also take variables like FORCE_COLOR for a terminal, and fill logs
        # with control characters.
        force_terminal=live,
        force_interactive=live,
        # In a notebook rich would show each line as a page of HTML of its own, past the stream.
        force_jupyter=False,
        color_system="auto" if live else None,
        width=width,
        # Names from data sets are shown as they are.
        markup=False,
        emoji=False,
        highlight=False,
    )


def is_terminal(stream: TextIO) -> bool:
    """Whether lines can be redrawn in place."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class _Encodable:
    """A stream that puts '?' for characters that its encoding lacks, instead of ending the run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        return self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))

    def flush(self) -> None:
        self._stream.flush()
