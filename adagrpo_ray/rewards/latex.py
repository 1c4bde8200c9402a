"""The built-in reward function for mathematics in LaTeX, based on math-verify."""

from __future__ import annotations

import logging
import re
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from adagrpo_ray.rewards.extract import final_answer, marked_answer, same_answer

if TYPE_CHECKING:
    from adagrpo_ray.config.data import FormatSettings

# math-verify's patterns take quadratic time, and the answer is at the end of a completion.
MAX_LENGTH = 4000
# sympy computes powers and factorials in full, which takes hours for 9^{9^{9}}.
MAX_EXPONENT = 10_000

# Dollars of a formula, not of an amount of money.
_MARKS = re.compile(r"(?<!\\)\$|\\\(|\\\[|\\boxed")
# "3e10", which LaTeX reads as 3 times e times 10.
_POWER_OF_TEN = re.compile(r"(?<![0-9A-Za-z.\\])([0-9]+(?:\.[0-9]+)?|\.[0-9]+)[eE]([+-]?[0-9]{1,4})(?![0-9A-Za-z.])")

# It warns that its time-outs are off, which is intended here.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def latex(completions: list[str], answer: str, *, format: FormatSettings, **context: object) -> list[float]:
    r"""Reward an answer that is mathematically equal to the ground truth: "\frac{1}{2}" is "0.5".

    | the text in the last pair of answer markers, or the end of the completion if there is none | score |
    | --- | --- |
    | is the same text or number as the ground truth, or math-verify finds them equal | 1.0 |
    | else | 0.0 |

    Exponents and factorials above 10,000 are not computed. Such answers are compared as texts only. Numbers below 0.001
    that math-verify finds equal may differ by 0.1 % at most.
    """
    truth = Truth(final_answer(answer))
    guesses = ((marked_answer(text, format), text) for text in completions)
    return [1.0 if (truth.ends(text) if guess is None else truth.equals(guess)) else 0.0 for guess, text in guesses]


class Truth:
    """A ground truth that answers are compared with. It is parsed once, at the first answer that is another text."""

    def __init__(self, answer: str) -> None:
        self._answer = answer

    @cached_property
    def _readings(self) -> list[Any]:
        return _parse(_as_latex(self._answer)) if len(self._answer) <= MAX_LENGTH else []

    def equals(self, guess: str) -> bool:
        """Return whether the answer `guess` is the same text or number, or math-verify finds them equal."""
        if same_answer(guess, self._answer):
            return True
        return len(guess) <= MAX_LENGTH and self._verified(_parse(_as_latex(guess)))

    def ends(self, text: str) -> bool:
        """Return whether math-verify finds an equal answer at the end of a text."""
        return self._verified(_parse(text[-MAX_LENGTH:]))

    def _verified(self, parsed: list[Any]) -> bool:
        from math_verify import verify

        try:
            # Without math-verify's alarms, which work in a main thread only. The scorer has a time limit.
            return any(
                verify(truth, guess, timeout_seconds=None) and not _differ(truth, guess)
                for truth, guess in product(self._readings, parsed)
            )
        except Exception:
            return False


def _differ(truth: Any, guess: Any) -> bool:
    """Return whether two readings that math-verify finds equal are small numbers that differ by over 0.1 %.

    It takes numbers for equal that differ by less than about 1e-6 or 1e-15: all physical constants of that size.
    Values below 1e-60 are those of expressions that are 0.
    """
    from sympy import Expr, N  # type: ignore[import-untyped]

    if not all(isinstance(reading, Expr) and reading.is_number for reading in (truth, guess)):
        return False
    try:
        one, other = N(truth.doit()), N(guess.doit())
        largest = max(abs(one), abs(other))
        return bool(1e-60 < largest < 1e-3 and abs(one - other) > largest / 1000)
    except Exception:  # they have no order, as infinity has none
        return False


def _as_latex(answer: str) -> str:
    """Return the answer in dollars. Without them math-verify reads a formula as prose."""
    answer = _POWER_OF_TEN.sub(r"\1 \\times 10^{\2}", answer)
    return answer if _MARKS.search(answer) else f"${answer.strip()}$"


def _parse(text: str) -> list[Any]:
    """Return math-verify's readings of the text, without those that would take too long to compute."""
    # Imported here, since it imports sympy and most runs have no LaTeX.
    from math_verify import parse

    try:
        return [reading for reading in parse(text, parsing_timeout=None) if not _explodes(reading)]
    except Exception:
        return []


def _explodes(reading: Any) -> bool:
    """Return whether a power or factorial of plain numbers in the reading is too large to compute."""
    from sympy import Basic, MatrixBase, N, Pow, factorial, postorder_traversal

    if not isinstance(reading, Basic | MatrixBase):
        return False
    # Innermost parts first: the parts of an expression are known to be small before it is evaluated.
    parts = (p for p in postorder_traversal(reading) if isinstance(p, Pow | factorial) and not p.free_symbols)
    return any(abs(N(p.args[-1], 5)) > MAX_EXPONENT or abs(N(p, 5)) > 10**MAX_EXPONENT for p in parts)
