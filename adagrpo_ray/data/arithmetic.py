"""The embedded task: additions with carries, and the worked solutions on which the tiny base model is trained.

A worked solution of 345+278 has one row "digit + digit + carry = sum" for each column, from the units up:

    <think>5+8+0=13
    4+7+1=12
    3+2+1=6</think>SOLUTION_START_FLAG623SOLUTION_END_FLAG

The incorrect procedure writes a carry of 0 into every row and so arrives at 513.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from adagrpo_ray.config.data import ArithmeticSettings, FormatSettings
from adagrpo_ray.errors import DataError

ARITHMETIC = "arithmetic"
"""The value of `data.source` for this task."""
THINK_START = "<think>"
SYSTEM_PROMPT = (
    "Think between <think> and {think_end}, then put the final number between {answer_start} and {answer_end}."
)
"""The system message of the task, with names of markers in braces."""


@dataclass(frozen=True)
class Problem:
    """An addition of two numbers with the same number of digits."""

    a: int
    b: int

    @property
    def text(self) -> str:
        """The question, as in "345+278"."""
        return f"{self.a}+{self.b}"

    @property
    def answer(self) -> str:
        """The correct sum."""
        return str(self.a + self.b)

    @property
    def digits(self) -> int:
        """Digits of each summand."""
        return len(str(self.a))

    @property
    def difficulty(self) -> str:
        """The difficulty class."""
        return f"{self.digits} digits"


def problem_sets(
    settings: ArithmeticSettings, train: int, held_out: int
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Return `train` problems to train on and `held_out` others, all different.

    The difficulty classes take turns, so each has an equal share of both sets. The held-out problems depend on the
    settings alone, not on the number to train on. Raises DataError if a class has too few problems.
    """
    difficulties = sorted(settings.keep_carry)
    shares = {digits: len(range(i, held_out + train, len(difficulties))) for i, digits in enumerate(difficulties)}
    for digits, share in shares.items():
        if share > count_problems(digits):
            raise DataError(
                f"arithmetic has {count_problems(digits)} problems of {digits} digits, and {share} are needed; "
                "lower data.train_prompts or data.eval_prompts, or add digits to arithmetic.keep_carry"
            )
    streams = [_distinct(digits, settings.seed) for digits in difficulties]
    problems = [next(stream) for stream in islice(cycle(streams), held_out + train)]
    return tuple(problems[held_out:]), tuple(problems[:held_out])


def count_problems(digits: int) -> int:
    """Return the number of different problems of a class.

    The top digits make 9 * 9 pairs. Of the 100 pairs of each column below, 55 sum to less than 10, and at least one
    column must not be such a pair.
    """
    return int(81 * (100 ** (digits - 1) - 55 ** (digits - 1)))


def draw_problem(rng: np.random.Generator, digits: int) -> Problem:
    """Return a random problem with a carry out of at least one column below the top one.

    Only such a carry can be dropped, since the sum of the top column is always written in full.
    """
    while True:
        a, b = rng.integers(0, 10, size=(2, digits)).tolist()
        if a[0] and b[0] and any(x + y >= 10 for x, y in zip(a[1:], b[1:], strict=True)):
            return Problem(int("".join(map(str, a))), int("".join(map(str, b))))


def worked_solution(problem: Problem, keep_carry: bool, markers: FormatSettings) -> str:
    """Return the thought with its rows and the answer, which is incorrect unless `keep_carry`."""
    rows: list[str] = []
    answer, carry, total = "", 0, 0
    for a, b in zip(reversed(str(problem.a)), reversed(str(problem.b)), strict=True):
        total = int(a) + int(b) + carry
        rows.append(f"{a}+{b}+{carry}={total}")
        answer = str(total % 10) + answer
        carry = total // 10 if keep_carry else 0
    answer = str(total) + answer[1:]
    thought = "\n".join(rows)
    return f"{THINK_START}{thought}{markers.think_end}{markers.answer_start}{answer}{markers.answer_end}"


def _distinct(digits: int, seed: int) -> Iterator[Problem]:
    """Yield different problems of one class. It loops forever after `count_problems` of them."""
    rng = np.random.default_rng([seed, digits])
    seen: set[Problem] = set()
    while True:
        problem = draw_problem(rng, digits)
        if problem not in seen:
            seen.add(problem)
            yield problem
