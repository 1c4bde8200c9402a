"""Finding the answer, and numbers, in the text of a completion.

All functions take linear time in the length of the text and accept any text, since a policy is rewarded for finding
weaknesses in them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from adagrpo_ray.rewards.numbers import Number, closing_brace, normalised, plain, read_number, same_number

if TYPE_CHECKING:
    from adagrpo_ray.config.data import FormatSettings

# A number in running text, with ASCII digits only. "1.2.3" and "1,2" match too, and are then read as no number.
_NUMBER_TEXT = r"\.?[0-9][0-9.,]*(?:[eE][+-]?[0-9]+(?![0-9A-Za-z]))?"
_NUMBER_LIKE = re.compile(rf"[+-]?{_NUMBER_TEXT}(?:/[0-9][0-9.,]*)?")
# The same, but a sign after a digit, letter or bracket is an operator: "12-7" has 12 and 7.
_NUMBER_IN_TEXT = re.compile(rf"(?:(?<![0-9A-Za-z)])[+-])?{_NUMBER_TEXT}(?:/[0-9][0-9.,]*)?")
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")


def final_answer(truth: str) -> str:
    r"""Return the final answer of a worked solution; any other ground truth unchanged.

    That is the text after "####" at the start of the last line (as in GSM8K), else the content of the last \boxed{} (as
    in MATH), else the whole text.
    """
    head, mark, tail = truth.rpartition("####")
    if mark and tail.strip() and "\n" not in tail.strip() and head.rstrip(" \t")[-1:] in ("", "\n"):
        return tail.strip()
    return last_box(truth) or truth


def last_box(text: str) -> str | None:
    r"""Return the content of the last \boxed{} in a text, without white space around it; None if it is not closed."""
    *_, box = [None, *_BOX.finditer(text)]
    end = -1 if box is None else closing_brace(text[box.end() :])
    return text[box.end() :][:end].strip() if box is not None and end >= 0 else None


def after_thought(text: str, format: FormatSettings) -> str | None:
    """Return the text after the last think end; None if there is no think end."""
    _, think_end, rest = text.rpartition(format.think_end)
    return rest if think_end else None


def marked_answer(text: str, format: FormatSettings) -> str | None:
    """Return the text in the last pair of answer markers, which must be after the last think end if there is one.

    Worked example: in "START 1 END START 2 END START 3" the last pair has " 2 ".
    """
    rest = after_thought(text, format)
    found = _last_pair(text if rest is None else rest, format)
    return found[0] if found else None


def exact_answer(text: str, format: FormatSettings) -> str | None:
    """Return the answer of a completion in the exact format of the prompt, else None.

    The format is: any text, think end, any text, answer start, an answer that is not blank, answer end, white space.
    """
    rest = after_thought(text, format)
    found = _last_pair(rest, format) if rest is not None else None
    if found is None:
        return None
    answer, behind = found
    return answer if answer.strip() and not behind.strip() else None


def _last_pair(text: str, format: FormatSettings) -> tuple[str, str] | None:
    """Return the text in the last pair of answer markers, and the text after it; None if there is no pair."""
    start = text.rfind(format.answer_start, 0, max(text.rfind(format.answer_end), 0))
    if start < 0:
        return None
    answer, _, behind = text[start + len(format.answer_start) :].partition(format.answer_end)
    return answer, behind


def number_after_start(text: str, format: FormatSettings) -> str | None:
    """Return the number in the first pair of answer markers; else the first text like a number after the first start.

    Full-width digits and minus signs are converted to ASCII. None if there is no answer start or no such text.
    """
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
    r"""Return whether two answers are the same number, or the same text.

    White space, dollars, \boxed{}, bold and a final full stop around a text are ignored.
    """
    return plain(guess) == plain(truth) or same_number(read_number(guess), read_number(truth))


def holds_answer(text: str, truth: str) -> bool:
    """Return whether the text contains the answer anywhere: as a number of that value, or as whole words.

    Worked example: "1,000.0" contains "1000", and "12+7=19" contains "19" but not "9".
    """
    truth = final_answer(truth)
    number = read_number(truth)
    if number is not None:
        return any(
            _is_number(found.group().rstrip(".,"), number) for found in _NUMBER_IN_TEXT.finditer(normalised(text))
        )
    return re.search(rf"(?<!\w){re.escape(truth.strip())}(?!\w)", text) is not None


def _is_number(found: str, number: Number) -> bool:
    """Return whether the text is that number; "1,2" may be several numbers, and "1/2" one or two."""
    whole = read_number(found)
    if whole is not None and (same_number(whole, number) or "/" not in found):
        return same_number(whole, number)
    return any(same_number(read_number(part), number) for part in re.split("[,/]", found))
