r"""Scoring of benchmarks: the last \boxed{} or the chosen letter of a completion, compared with the ground truth.

Both are searched for after the last think end, or in the whole completion if there is none. A completion without an
answer in the prompted form is wrong, whatever else it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.rewards import RewardSettings, RewardsSettings
from adagrpo_ray.data.benchmark_sets import ANSWERS
from adagrpo_ray.rewards.extract import after_thought, last_box
from adagrpo_ray.rewards.latex import Truth

if TYPE_CHECKING:
    from adagrpo_ray.config.data import FormatSettings

FUNCTION = f"{__name__}:correct"
"""The function in a list of reward functions."""

# "Answer: C", as prompted, and with the marks that models put around it: "**Answer:** (C)", "The answer is $\text{C}$."
# and 'Answer: C' with the quotes of the prompt. In "Answer: I'm not sure" the apostrophe is that of a word.
_MARKS = r"(?:[\s*_:$({\['\"`]|\\(?:boxed|text|textbf|mathbf|mathrm)(?=\{)|\\[(\[]){0,16}"
_CHOSEN = re.compile(rf"(?i:\banswer)[\s*_]{{0,8}}(?::|(?i:is)\b){_MARKS}([A-Z])(?![A-Za-z0-9]|'[A-Za-z])")
_LETTER = re.compile(rf"{_MARKS}([A-Z])[\s*_.$)}}\]`'\"]{{0,16}}")


def correct(
    completions: list[str], answer: str, *, format: FormatSettings, columns: Mapping[str, Any], **context: object
) -> list[float]:
    r"""Reward the answer of a benchmark.

    | the answer of the completion | score |
    | --- | --- |
    | is the letter of the ground truth | 1.0 |
    | is the same text or number as the ground truth, or math-verify finds them equal | 1.0 |
    | else, or if there is none | 0.0 |
    """
    letters, truth = columns[ANSWERS] == "letter", Truth(answer)
    guesses = (extracted(text, columns[ANSWERS], format) for text in completions)
    return [
        1.0 if guess is not None and (guess == answer if letters else truth.equals(guess)) else 0.0 for guess in guesses
    ]


def extracted(text: str, answers: str, format: FormatSettings) -> str | None:
    r"""Return the answer of a completion; None if it has none in the prompted form.

    For letters that is the letter after the last "Answer:" or "answer is", else the letter in the last \boxed{}; for
    other kinds of `answers` the content of the last \boxed{}.
    """
    rest = after_thought(text, format)
    rest = text if rest is None else rest
    box = last_box(rest)
    if answers != "letter":
        return box or None
    chosen = _CHOSEN.findall(rest)
    if chosen:
        return str(chosen[-1])
    boxed = _LETTER.fullmatch(box) if box else None
    return boxed[1] if boxed else None


def scoring(rewards: RewardsSettings) -> RewardsSettings:
    """Return the settings for a scorer of benchmarks, with the processes and limits of those of the run."""
    return rewards.model_copy(
        update={"functions": (RewardSettings(function=FUNCTION),), "correct_by": None, "correct_above": 0.0}
    )
