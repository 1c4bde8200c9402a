"""Finding the answer, and numbers, in a completion's text.

Everything here is linear in the length of the text and takes any text at all: completions are written by
a policy that is paid to find the cracks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from adagrpo_ray.rewards.numbers import Number, closing_brace, normalised, plain, read_number, same_number

if TYPE_CHECKING:
    from adagrpo_ray.config.data import FormatSettings

# A number in running text: "1.2.3" and "1,2" are found, and then are no numbers. ASCII digits only.
_NUMBER_TEXT = r"\.?[0-9][0-9.,]*(?:[eE][+-]?[0-9]+(?![0-9A-Za-z]))?"
_NUMBER_LIKE = re.compile(rf"[+-]?{_NUMBER_TEXT}(?:/[0-9][0-9.,]*)?")
# The same, where a sign behind a digit, letter or bracket is an operator: "12-7" holds 12 and 7.
_NUMBER_IN_TEXT = re.compile(rf"(?:(?<![0-9A-Za-z)])[+-])?{_NUMBER_TEXT}(?:/[0-9][0-9.,]*)?")
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")


def final_answer(truth: str) -> str:
    r"""The final answer of a worked solution; any other ground truth as it is.

    That is what follows "####" at the start of the last line (as in GSM8K), else what the last \boxed{} holds (as in
    MATH), else the whole text.
    """
    head, mark, tail = truth.rpartition("####")
    if mark and tail.strip() and "\n" not in tail.strip() and head.rstrip(" \t")[-1:] in ("", "\n"):
        return tail.strip()
    *_, box = [None, *_BOX.finditer(truth)]
    end = -1 if box is None else closing_brace(truth[box.end() :])
    boxed = truth[box.end() :][:end].strip() if box is not None and end >= 0 else ""
    return boxed or truth


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
    """What the first pair of answer markers holds, if that is a number; else the first thing after the first answer
    start that looks like one. Full-width digits and minus signs come back as ASCII."""
    start = text.find(format.answer_start)
    if start < 0:
        return None
    rest = normalised(text[start + len(format.answer_start) :])
    inner, end, _ = text[start + len(format.answer_start) :].partition(format.answer_end)
    if end and read_number(inner) is not None:
        return normalised(inner).strip()
    found = _NUMBER_LIKE.search(rest)
    return found.group().rstrip(".,") if found else None


def same_answer(guess: str, truth: str) -> bool:
    r"""Whether two answers are the same number, or the same text.

    White space, dollars, \boxed{}, bold and a final full stop around a text do not count.
    """
    return plain(guess) == plain(truth) or same_number(read_number(guess), read_number(truth))


def holds_answer(text: str, truth: str) -> bool:
    """Whether the answer stands anywhere in the text: as a number of that value, or as words of their own.

    Worked example: "1,000.0" holds "1000", and "12+7=19" holds "19" but not "9".
    """
    truth = final_answer(truth)
    number = read_number(truth)
    if number is not None:
        return any(
            _is_number(found.group().rstrip(".,"), number) for found in _NUMBER_IN_TEXT.finditer(normalised(text))
        )
    return re.search(rf"(?<!\w){re.escape(truth.strip())}(?!\w)", text) is not None


def _is_number(found: str, number: Number) -> bool:
    """Whether it is that number; "1,2" may be several numbers, and "1/2" one or two."""
    whole = read_number(found)
    if whole is not None and (same_number(whole, number) or "/" not in found):
        return same_number(whole, number)
    return any(same_number(read_number(part), number) for part in re.split("[,/]", found))
