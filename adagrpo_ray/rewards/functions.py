"""The built-in reward functions over plain text and numbers.

A reward function, built-in or your own, is called once per group:

    def f(completions: list[str], answer: str, **context) -> list[float | None]

`answer` is the ground truth of the data; the built-in functions use its `final_answer`. The context has `prompt` (the
text of the problem), `format` (the markers `think_end`, `answer_start`, `answer_end`), `difficulty`, and each column of
the prompt's row under its own name. The mapping `columns` has all columns, also those with the name of another
argument. Nested columns are passed whole. A function returns one score per completion. None means that it does not
apply to the completion; such a score is left out of the sum.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from adagrpo_ray.rewards.extract import (
    after_thought,
    exact_answer,
    final_answer,
    marked_answer,
    number_after_start,
    same_answer,
)
from adagrpo_ray.rewards.numbers import Number, read_number, same_number

if TYPE_CHECKING:
    from adagrpo_ray.config.data import FormatSettings


def format_approximate(completions: list[str], *, format: FormatSettings, **context: object) -> list[float]:
    """Reward each marker that occurs exactly once.

    | for each of think end, answer start, answer end | score |
    | --- | --- |
    | occurs exactly once | +0.5 |
    | else | -1.0 |
    """
    markers = (format.think_end, format.answer_start, format.answer_end)
    return [sum(0.5 if text.count(marker) == 1 else -1.0 for marker in markers) for text in completions]


def format_exact(completions: list[str], *, format: FormatSettings, **context: object) -> list[float]:
    """Reward the format that the prompt asks for.

    | the whole completion | score |
    | --- | --- |
    | thought, think end, anything, answer start, answer, answer end, end of text (or white space) | +3.0 |
    | else | 0.0 |
    """
    return [0.0 if exact_answer(text, format) is None else 3.0 for text in completions]


def answer(completions: list[str], answer: str, *, format: FormatSettings, **context: object) -> list[float]:
    """Reward the answer of a completion in the exact format, also for a number near to the ground truth.

    | the answer between the markers | score |
    | --- | --- |
    | is missing, or the format is not exact | -2.0 |
    | equals the ground truth | +5.0 |
    | is the same number, as "1,000" is 1000, or the same text but for white space or a wrapping such as $...$ | +3.5 |
    | is a number within 10 % of it | +2.0 |
    | is a number within 20 % of it | +1.5 |
    | is another number | -2.5 |
    | is not a number, or the ground truth is none | -4.5 |
    """
    truth = final_answer(answer)
    return [_answer_score(exact_answer(text, format), truth) for text in completions]


def _answer_score(guess: str | None, truth: str) -> float:
    if guess is None:
        return -2.0
    if guess == truth:
        return 5.0
    if same_answer(guess, truth):
        return 3.5
    guess_number, truth_number = read_number(guess), read_number(truth)
    if guess_number is None or truth_number is None:
        return -4.5
    pairs = [(a, b) for a in guess_number.readings(truth_number) for b in truth_number.readings(guess_number)]
    # A product instead of a ratio, since the ground truth may be zero.
    if any(abs(a - b) <= abs(b) * Fraction(1, 10) for a, b in pairs):
        return 2.0
    return 1.5 if any(abs(a - b) <= abs(b) * Fraction(1, 5) for a, b in pairs) else -2.5


def number(completions: list[str], answer: str, *, format: FormatSettings, **context: object) -> list[float]:
    """Reward the correct number after an answer start, in any format.

    | the first number after the first answer start | score |
    | --- | --- |
    | is missing | -2.5 |
    | equals the ground truth | +3.5 |
    | is another number | -1.5 |
    | in both cases, if the first number after the first answer start after the last think end is the same | +0.5 more |
    | is malformed ("1.2.3"), or the ground truth is not a number | 0.0 |
    """
    truth = read_number(final_answer(answer))
    return [_number_score(text, truth, format) for text in completions]


def _number_score(text: str, truth: Number | None, format: FormatSettings) -> float:
    found = number_after_start(text, format)
    if found is None:
        return -2.5
    guess = read_number(found)
    if guess is None or truth is None:
        return 0.0
    found_after = number_after_start(after_thought(text, format) or "", format)
    same = found_after is not None and same_number(read_number(found_after), guess)
    return (3.5 if same_number(guess, truth) else -1.5) + (0.5 if same else 0.0)


def exact(completions: list[str], answer: str, *, format: FormatSettings, **context: object) -> list[float]:
    """Reward the correct answer between the markers, and nothing else.

    | the text in the last pair of answer markers (after the think end, if there is one) | score |
    | --- | --- |
    | is the same number as the ground truth ("1,000.0" is "1000"), or the same text but for a wrapping | 1.0 |
    | else | 0.0 |
    """
    truth = final_answer(answer)
    guesses = (marked_answer(text, format) for text in completions)
    return [1.0 if guess is not None and same_answer(guess, truth) else 0.0 for guess in guesses]


def environment(completions: list[str], *, episode_rewards: list[float], **context: object) -> list[float]:
    """Return the rewards that the environment (`environment.name`) gave to the episodes.

    | the episode | score |
    | --- | --- |
    | any | the sum of the rewards of its turns |
    """
    return list(episode_rewards)
