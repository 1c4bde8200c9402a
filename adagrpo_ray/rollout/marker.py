"""Finds the marker between thought and answer in a growing completion: a finite automaton that reads token ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTIAL = "\N{REPLACEMENT CHARACTER}"
"""The character that a tokenizer writes for bytes that are not a whole character."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""The name of a token of one byte in vocabularies with byte fallback."""

KEPT = 32
"""Automata that are kept for later requests. A run has one marker."""


class MarkerAutomaton:
    """Reads tokens and searches them for a marker of `last` symbols.

    The symbols of a token are the token itself if the marker is a list of ids, and its bytes if it is a text. In state
    n < `last` the last n symbols are the first n of the marker (Knuth-Morris-Pratt). In state `last` the marker has
    been read, and the automaton stays there. It begins in state 0.
    """

    def __init__(self, marker: Sequence[int], symbols: Callable[[int], Sequence[int]]) -> None:
        self.last = len(marker)
        self._symbols = symbols
        self._next = _transitions(marker)
        self._columns: dict[int, tuple[int, ...]] = {}

    def step(self, state: int, token: int) -> int:
        """The state after a token."""
        if token not in self._columns:
            self._columns[token] = self._column(token)
        return self._columns[token][state]

    def table(self, vocabulary: int) -> NDArray[np.int32]:
        """The state after each token in each state, shape [last + 1, vocabulary]."""
        table = np.empty((self.last + 1, vocabulary), np.int32)
        for token in range(vocabulary):
            table[:, token] = self._column(token)
        return table

    def _column(self, token: int) -> tuple[int, ...]:
        """The state after the token, for each state before it."""
        symbols = self._symbols(token)
        from_zero = [0]
        for symbol in symbols:
            from_zero.append(self._read(from_zero[-1], symbol))
        return (*(self._end(state, symbols, from_zero) for state in range(self.last)), self.last)

    def _end(self, state: int, symbols: Sequence[int], from_zero: Sequence[int]) -> int:
        """Read the symbols. Once the state is that of a start in 0, so is the end, which is true for most tokens."""
        for symbol, at_zero in zip(symbols, from_zero[1:], strict=True):
            state = self._read(state, symbol)
            if state == at_zero:
                return from_zero[-1]
        return state

    def _read(self, state: int, symbol: int) -> int:
        return self.last if state == self.last else self._next[state].get(symbol, 0)


def _transitions(marker: Sequence[int]) -> list[dict[int, int]]:
    """For each state but the last, the next state by symbol; 0 for symbols that are missing."""
    following = [{marker[0]: 1}]
    border = 0  # the state after the symbols of the marker up to here without the first one
    for place, symbol in enumerate(marker[1:], start=1):
        following.append({**following[border], symbol: place + 1})
        border = following[border].get(symbol, 0)
    return following


class Automata:
    """The automata of markers; `load` returns the tokenizer and is called for the first marker that is a text."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._spelling = Spelling(load)
        self.of = lru_cache(KEPT)(self._made)

    def _made(self, marker: str | tuple[int, ...]) -> MarkerAutomaton:
        if isinstance(marker, str):
            return MarkerAutomaton(marker.encode(), self._spelling.of)
        return MarkerAutomaton(marker, lambda token: (token,))


class Spelling:
    """The bytes that each token appends to a text, including special tokens."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._tokenizer: Any = None
        self._anchor: list[int] = []
        self._before = ""

    def of(self, token: int) -> bytes:
        """The bytes of the token, which may be a part of a character."""
        if self._tokenizer is None:
            self._tokenizer = self._load()
            # Some tokenizers drop the space at the beginning of a text, so a token is decoded after another one.
            self._anchor = list(self._tokenizer.encode("a", add_special_tokens=False))
            self._before = self._decoded([])
        text = self._decoded([token])[len(self._before) :]
        raw = _raw(self._tokenizer.convert_ids_to_tokens(token)) if PARTIAL in text else None
        return text.encode() if raw is None else raw

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode([*self._anchor, *ids], skip_special_tokens=False))


def _raw(name: str) -> bytes | None:
    """The bytes of a token by its name in the vocabulary; None if the name has another form."""
    byte = BYTE_TOKEN.fullmatch(name)
    if byte is not None:
        return bytes([int(byte[1], 16)])
    alphabet = byte_alphabet()
    return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else None


@lru_cache
def byte_alphabet() -> dict[str, int]:
    """Bytes by the characters that stand for them in vocabularies of byte-level BPE.

    Source: `bytes_to_unicode` of GPT-2. Printable bytes of Latin-1 stand for themselves, the others for the characters
    from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
