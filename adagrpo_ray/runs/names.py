"""Text of users as names: difficulty classes, functions and run names in tags, labels and metric names.

Each place that takes names has a `Rule`. A name says the text as it is, but for characters that the place does not
take: these are percent-encoded, as in URLs, with the rule's own escape character. So texts that differ have names that
differ, and `text_of` finds the text again, unless it is too long for the place: then its end is a digest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

LONGEST = 200
"""Bytes of a name in UTF-8: a file's name has 255 at the most, MLflow's keys 250 with their group before the name."""

_DIGITS = 16
"""Of the digest, in hexadecimal."""


@dataclass(frozen=True)
class Rule:
    """What a place takes: characters that are `allowed`, among them `escape`, and hexadecimal digits.

    Nowhere may a name begin with a dot (that is a path) or begin or end with a space (which cannot be seen).
    """

    escape: str
    allowed: Callable[[str], bool]


TAG = Rule("%", lambda c: c.isprintable() and c != "/")
"""TensorBoard and W&B: any text, in which a slash makes a group."""

TEXT = Rule("%", str.isprintable)
"""What people read on a terminal, on a page or in a document: no text may steer a terminal, or be invisible."""

MLFLOW = Rule(":", lambda c: re.match(r"[\w. :-]", c) is not None and c.isprintable())
"""MLflow: letters and digits of any script, and of other characters these few; a slash makes a folder."""

LABEL = Rule("%", lambda c: c.isascii() and c.isprintable())
"""Labels of Ray's metrics: it raises on all that is not ASCII."""

FILE = Rule("%", lambda c: c.isascii() and c.isprintable() and c != "/")
"""A part of a file's name."""


@lru_cache(maxsize=100_000)
def name_of(text: str, rule: Rule = TAG, longest: int = LONGEST) -> str:
    """`text` as a name of at most `longest` bytes by the rule. Worked example: "a/b é" is "a%2Fb %C3%A9" as a LABEL.

    The escape character itself stays as it is if no escape begins with it: "50 %" is "50 %".
    """
    parts = [_part(text, place, rule) for place in range(len(text))]
    if sum(len(part.encode()) for part in parts) <= longest:
        return "".join(parts)
    end = f"{rule.escape}H{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:_DIGITS]}"
    kept, left = [], longest - len(end)
    for part in parts:
        left -= len(part.encode())
        if left < 0:
            break
        kept.append(part)
    return "".join(kept) + end


def text_of(name: str, rule: Rule = TAG) -> str:
    """The text whose `name_of` is `name`; of one that was too long, what its name shows of it."""
    parts, place = bytearray(), 0
    while place < len(name):
        if name[place] == rule.escape and _is_byte(name[place + 1 : place + 3]):
            parts.append(int(name[place + 1 : place + 3], 16))
            place += 3
        else:
            parts += name[place].encode("utf-8", "surrogatepass")
            place += 1
    return parts.decode("utf-8", "surrogatepass")


def _part(text: str, place: int, rule: Rule) -> str:
    """The character of `text` at `place`, or its escape."""
    character = text[place]
    at_an_end = character == " " and place in (0, len(text) - 1)
    ambiguous = character == rule.escape and (
        _is_byte(text[place + 1 : place + 3]) or text[place + 1 : place + 2] == "H"
    )
    if rule.allowed(character) and not (at_an_end or ambiguous or (character == "." and place == 0)):
        return character
    return "".join(f"{rule.escape}{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _is_byte(text: str) -> bool:
    return re.fullmatch("[0-9A-F]{2}", text) is not None
