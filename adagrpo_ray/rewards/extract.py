"""Finding the answer, and numbers, in a completion's text.

Everything here is linear in the length of the text and takes any text at all: completions are written by
a policy that is paid to find the cracks.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adagrpo_ray.config.tree import FormatSettings

# Longer digit strings are refused: nobody means them, and int() has a limit of its own (4300).
MAX_NUMBER_LENGTH = 1000

# A sign, then digits, with thousands commas or without, then decimals. ASCII digits only.
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)")
# What looks like one from afar: "1.2.3" and "1,2" are found, and then are no numbers.
_NUMBER_LIKE = re.compile(r"[+-]?\.?[0-9][0-9.,]*")
# The same, where a sign behind a digit, letter or bracket is an operator: "12-7" holds 12 and 7.
_NUMBER_IN_TEXT = re.compile(r"(?:(?<![0-9A-Za-z)])[+-])?\.?[0-9][0-9.,]*")


def after_thought(text: str, format: FormatSettings) -> str | None:
    """What follows the last think end; None where there is no think end."""
    _, think_end, rest = text.rpartition(format.think_end)
    return rest if think_end else None


def marked_answer(text: str, format: FormatSettings) -> str | None:
    """The text in the last pair of answer markers; where there is a think end, only after it.

    Worked example: in "START 1 END START 2 END START 3" the last pair holds " 2 ".
    """
    rest = after_thought(text, format)
    found = _last_pair(text if rest is None else rest, format)
    return found[0] if found else None


def exact_answer(text: str, format: FormatSettings) -> str | None:
    """The answer of a completion that keeps the prompted format to the letter, else None.

    That is: anything, think end, anything, answer start, an answer that is not blank, answer end, and
    nothing but white space behind it.
    """
    rest = after_thought(text, format)
    found = _last_pair(rest, format) if rest is not None else None
    if found is None:
        return None
    answer, behind = found
    return answer if answer.strip() and not behind.strip() else None


def _last_pair(text: str, format: FormatSettings) -> tuple[str, str] | None:
    """What the last pair of answer markers holds, and what stands behind it."""
    start = text.rfind(format.answer_start, 0, max(text.rfind(format.answer_end), 0))
    if start < 0:
        return None
    answer, _, behind = text[start + len(format.answer_start) :].partition(format.answer_end)
    return answer, behind


def number_after_start(text: str, format: FormatSettings) -> str | None:
    """The first thing after the first answer start that looks like a number."""
    start = text.find(format.answer_start)
    found = _NUMBER_LIKE.search(text, start + len(format.answer_start)) if start >= 0 else None
    return found.group().rstrip(".,") if found else None


def parse_number(text: str) -> Fraction | None:
    """The exact value of a decimal number such as " -1,234.50 "; None where the text is none."""
    text = text.strip()
    if len(text) > MAX_NUMBER_LENGTH or not _NUMBER.fullmatch(text):
        return None
    return Fraction(text.replace(",", ""))


def same_answer(guess: str, truth: str) -> bool:
    """Whether two answers are the same text, white space around them aside, or the same number."""
    if guess.strip() == truth.strip():
        return True
    number = parse_number(guess)
    return number is not None and number == parse_number(truth)


def holds_answer(text: str, truth: str) -> bool:
    """Whether the answer stands anywhere in the text: as a number of that value, or as words of their own.

    Worked example: "1,000.0" holds "1000", and "12+7=19" holds "19" but not "9".
    """
    number = parse_number(truth)
    if number is not None:
        return any(_is_number(found.group().rstrip(".,"), number) for found in _NUMBER_IN_TEXT.finditer(text))
    return re.search(rf"(?<!\w){re.escape(truth.strip())}(?!\w)", text) is not None


def _is_number(found: str, number: Fraction) -> bool:
    """Whether it is that number; what is none as a whole, as "1,2", may be several."""
    whole = parse_number(found)
    return whole == number if whole is not None else any(parse_number(part) == number for part in found.split(","))
