"""Creates a rich console for a terminal or a log."""

from __future__ import annotations

import os
from typing import TextIO, cast

from rich.console import Console


def rich_console(stream: TextIO, *, live: bool, width: int | None = None) -> Console:
    """A console on `stream`. It redraws and colours only if `live`; `width` overrides the width that is detected."""
    return Console(
        # A cast, because rich uses fewer methods of a stream than its annotation requires.
        file=cast(TextIO, _Encodable(stream)),
        # Explicit, because rich would treat a log as a terminal if a variable like FORCE_COLOR is set, and fill it
        # with control characters.
        force_terminal=live,
        force_interactive=live,
        # In a notebook rich would bypass the stream and show each line as a block of HTML.
        force_jupyter=False,
        color_system="auto" if live else None,
        width=width,
        # Names from data sets are shown literally.
        markup=False,
        emoji=False,
        highlight=False,
    )


def is_terminal(stream: TextIO) -> bool:
    """Whether lines can be redrawn in place."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class _Encodable:
    """Replaces characters that the stream's encoding lacks by '?', instead of raising an error that ends the run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        return self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))

    def flush(self) -> None:
        self._stream.flush()
