"""Finds the marker between thought and answer in a growing completion: by token ids, or in its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

PARTIAL = "\N{REPLACEMENT CHARACTER}"
"""The character that a tokenizer writes for bytes that are not a whole character."""

MOST_PARTS = 8
"""The most tokens of one character, with a margin: UTF-8 has at most 4 bytes, and a token at least one of them."""


class Watch(Protocol):
    """Searches a growing list of ids for a marker.

    - `read`: number of ids that have been read.
    - `seen`: whether the marker is among them.
    """

    read: int
    seen: bool

    def update(self, ids: Sequence[int]) -> bool:
        """Read the new ids of `ids`, the whole list so far; returns whether the marker is in it."""


class MarkerWatch:
    """Searches a growing list of ids for a list of ids; reads each id once (Knuth-Morris-Pratt)."""

    def __init__(self, marker: Sequence[int]) -> None:
        self._marker = tuple(marker)
        # After `n` matched ids and a mismatch, the longest border of those n ids still matches.
        self._border = [0] + [
            max(k for k in range(n) if self._marker[:k] == self._marker[n - k : n]) for n in range(1, len(marker))
        ]
        self._matched = 0
        self.read = 0
        self.seen = False

    def update(self, ids: Sequence[int]) -> bool:
        """Read the new ids of `ids`, the whole list so far; returns whether the marker is in it."""
        while self.read < len(ids):
            token = ids[self.read]
            self.read += 1
            if self.seen:
                continue
            while self._matched and self._marker[self._matched] != token:
                self._matched = self._border[self._matched]
            self._matched += self._marker[self._matched] == token
            self.seen = self._matched == len(self._marker)
        return self.seen


class Pieces:
    """The text of tokens, including special ones; `load` returns the tokenizer and is called on first use."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._tokenizer: Any = None
        self._anchor: list[int] = []
        self._known: dict[tuple[int, ...], str] = {}

    def text(self, ids: Sequence[int]) -> str:
        """The text that these ids append; it ends with `PARTIAL` if they are a part of a character."""
        key = tuple(ids)
        if key not in self._known:
            self._known[key] = self._decoded(key)
        return self._known[key]

    def _decoded(self, ids: tuple[int, ...]) -> str:
        if self._tokenizer is None:
            self._tokenizer = self._load()
            # Some tokenizers drop the space at the beginning of a text, so ids are always decoded after another token.
            self._anchor = list(self._tokenizer.encode("a", add_special_tokens=False))
        decode = self._tokenizer.decode
        before = decode(self._anchor, skip_special_tokens=False)
        return str(decode([*self._anchor, *ids], skip_special_tokens=False))[len(before) :]


class TextWatch:
    """Searches the text of a growing list of ids for a marker, for any division of the text into tokens.

    "</think>" may be one token, several tokens, or a part of some: in "sum.</think>\n" the first token may be ".</" and
    the last ">\n".
    """

    def __init__(self, marker: str, pieces: Pieces) -> None:
        self._marker, self._pieces = marker, pieces
        self._parts: list[int] = []
        self._tail = ""
        self.read = 0
        self.seen = False

    def update(self, ids: Sequence[int]) -> bool:
        """Read the new ids of `ids`, the whole list so far; returns whether the marker is in it."""
        while self.read < len(ids):
            self._parts.append(ids[self.read])
            self.read += 1
            if self.seen:
                continue
            text = self._pieces.text(self._parts)
            if text.endswith(PARTIAL) and len(self._parts) < MOST_PARTS:
                continue
            self._parts.clear()
            text = self._tail + text
            self.seen = self._marker in text
            self._tail = text[max(0, len(text) - len(self._marker) + 1) :]
        return self.seen
