"""The task `skills`: ten operations on four digits, which a tiny model does by a correct or by a wrong procedure.

A prompt is an operand and the sign of an operation. A completion begins with a letter that names the procedure, and
digits follow. The base model writes the letter of the correct procedure with the probability `rate`. The wrong
procedure writes one digit as often as the answer has digits, so that both cost the same number of tokens.

    =4821~~~    correct: a8214    wrong: k0000    (rotate)

The skills are independent: to learn one hardly moves the others. Each has its own two letters and its own wrong digit,
and its sign stands last, three times, so that the model's state at the choice of the procedure is mostly that of the
sign. If one rate is trained to 0.9, the log-odds of the others move by 0.2 on average. With the sign first and one
wrong procedure for all, they moved by 1 to 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

OPERANDS = 10_000
"""The operands are 0000 to 9999."""
HEAD = "="
"""The beginning of every prompt."""


@dataclass(frozen=True)
class Skill:
    """An operation with its sign, the letters of its procedures, and the success rate of the base model.

    `digit` is the one that its wrong procedure writes.
    """

    name: str
    rate: float
    sign: str
    correct: str
    wrong: str
    digit: str
    operation: Callable[[str], str]

    def prompt(self, operand: str) -> str:
        return HEAD + operand + 3 * self.sign

    def answer(self, operand: str) -> str:
        """The correct completion."""
        return self.correct + self.operation(operand)

    def wrong_answer(self, operand: str) -> str:
        """The completion of the wrong procedure, which is as long."""
        return self.wrong + self.digit * len(self.operation(operand))


def _each(change: Callable[[int], int]) -> Callable[[str], str]:
    return lambda operand: "".join(str(change(int(digit))) for digit in operand)


_OPERATIONS: tuple[tuple[str, float, str, Callable[[str], str]], ...] = (
    ("rotate", 0.005, "~", lambda d: d[1:] + d[0]),
    ("complement", 0.01, "^", _each(lambda digit: 9 - digit)),
    ("last", 0.02, ">", lambda d: d[3]),
    ("swap", 0.04, "%", lambda d: d[3] + d[1:3] + d[0]),
    ("increment", 0.08, "+", _each(lambda digit: (digit + 1) % 10)),
    ("parity", 0.15, "?", _each(lambda digit: digit % 2)),
    ("mirror", 0.30, "|", lambda d: d[2:] + d[3] + d[2]),
    ("outer", 0.60, "#", lambda d: d[0] + d[3]),
    ("halve", 0.90, "/", _each(lambda digit: digit // 2)),
    ("reverse", 0.99, "<", lambda d: d[::-1]),
)

SKILLS: tuple[Skill, ...] = tuple(
    Skill(name, rate, sign, chr(ord("a") + place), chr(ord("k") + place), str(place), operation)
    for place, (name, rate, sign, operation) in enumerate(_OPERATIONS)
)

LONGEST = 1 + 4 + 1
"""Tokens of the longest completion: its letter, four digits and the end."""


def same_text(completions: list[str], answer: str, **context: object) -> list[float]:
    """The reward function: 1.0 if the whole completion is the answer, else 0.0."""
    return [float(text == answer) for text in completions]


def rows(bundles: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield `bundles` * 10 rows of a data set.

    A bundle is one problem of each skill. The column `bundle`, given as data.columns.problem, keeps it together when
    prompts are held out, so that all skills have the same number of held-out prompts.
    """
    rng = np.random.default_rng(seed)
    operands = [rng.permutation(OPERANDS)[:bundles].tolist() for _ in SKILLS]
    for bundle in range(bundles):
        for skill, numbers in zip(SKILLS, operands, strict=True):
            operand = f"{numbers[bundle]:04d}"
            yield {
                "prompt": skill.prompt(operand),
                "solution": skill.answer(operand),
                "skill": skill.name,
                "bundle": f"bundle {bundle}",
            }


def write_rows(file: Path, found: Sequence[dict[str, str]]) -> None:
    """Write the rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
