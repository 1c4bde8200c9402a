"""Escapes text of users for names: difficulties, functions and run names in tags, labels and metric names.

Each kind of name has a `Rule`. A name is the text itself, except that characters which are not allowed are
percent-encoded as in URLs, with the escape character of the rule. So different texts have different names, and
`text_of` recovers the text. If a text is too long, the end of its name is a digest instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

LONGEST = 200
"""Bytes of a name in UTF-8. The limit for file names is 255, for MLflow's keys, including their prefix, 250."""

_DIGITS = 16
"""Hexadecimal digits of the digest."""


@dataclass(frozen=True)
class Rule:
    """The characters that a kind of name allows, among them `escape` and hexadecimal digits.

    No name begins with a dot, which would make it a path, or begins or ends with a space, which is invisible.
    """

    escape: str
    allowed: Callable[[str], bool]


TAG = Rule("%", lambda c: c.isprintable() and c != "/")
"""TensorBoard and W&B: any printable character except the slash, which makes a group."""

TEXT = Rule("%", str.isprintable)
"""Text on a terminal, on a page or in a document: no control characters, no invisible ones."""

MLFLOW = Rule(":", lambda c: re.match(r"[\w. :-]", c) is not None and c.isprintable())
"""MLflow: letters and digits of any script, and few other characters; a slash makes a folder."""

LABEL = Rule("%", lambda c: c.isascii() and c.isprintable())
"""Labels of Ray's metrics: Ray raises on any character that is not ASCII."""

FILE = Rule("%", lambda c: c.isascii() and c.isprintable() and c != "/")
"""A part of a file name."""


@lru_cache(maxsize=100_000)
def name_of(text: str, rule: Rule = TAG, longest: int = LONGEST) -> str:
    """`text` as a name of at most `longest` bytes. Worked example: as a FILE, "a/b é" is "a%2Fb %C3%A9".

    The escape character itself stays unless it would begin an escape: "50 %" is "50 %".
    """
    parts = [_part(text, place, rule) for place in range(len(text))]
    if sum(len(part.encode()) for part in parts) <= longest:
        return "".join(parts)
    end = f"{rule.escape}H{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:_DIGITS]}"
    head, left = [], longest - len(end)
    for part in parts:
        left -= len(part.encode())
        if left < 0:
            break
        head.append(part)
    return "".join(head) + end


def text_of(name: str, rule: Rule = TAG) -> str:
    """The text whose `name_of` is `name`; its beginning and the digest if the text was too long."""
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
