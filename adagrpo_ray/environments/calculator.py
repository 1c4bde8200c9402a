"""A calculator: a tool that makes a hard sum easy, and an environment of sums that need it.

For a model that was not trained to call tools, the rows of the environment show an answer without a call and some with
one. Sums of the kind without a call are easy, and the others are hard: the policy learns to call the tool.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from adagrpo_ray.data.messages import Message
from adagrpo_ray.environments.protocol import Reply

OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LONGEST = 100
"""Most characters of an expression."""
SHOWN = 2
"""Solved problems of each kind in a prompt."""


def calculator(expression: str) -> str:
    """Compute an arithmetic expression.

    Args:
        expression: numbers with + - * / and round brackets, such as 12*(3+4)

    Returns:
        The value.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression is longer than {LONGEST} characters")
    value = _value(ast.parse(expression.strip(), mode="eval").body)
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def short_calls(text: str) -> list[dict[str, Any]]:
    """Return the calls that a turn writes as in calculator(expression=12+34), for `environment.parser`."""
    found = re.findall(r"calculator\(expression=([^\n]*)\)", text)
    return [{"name": "calculator", "arguments": {"expression": expression}} for expression in found]


class HardSums:
    """Sums of two numbers; the reward is 1 if the last turn has the correct number as its only number."""

    def __init__(self, digits: int = 3, problems: int = 400, seed: int = 0) -> None:
        self._digits, self._problems, self._seed = digits, problems, seed
        self._answer = ""
        self.tools = [calculator]

    def rows(self) -> list[dict[str, Any]]:
        """Return the problems, each after solved ones: easy ones without a call, and hard ones by the tool, in turn."""
        rng, rows = Random(self._seed), dict[str, dict[str, Any]]()
        low, high = 10 ** (self._digits - 1), 10**self._digits - 1
        while len(rows) < self._problems:
            prompt: list[Message] = []
            for _ in range(SHOWN):
                a, b, c, d = (rng.randint(*bounds) for bounds in ((1, 4), (1, 4), (low, high), (low, high)))
                prompt += [*_answered(f"{a}+{b}", a + b), *_called(f"{c}+{d}", c + d)]
            a, b = rng.randint(low, high), rng.randint(low, high)
            rows[f"{a}+{b}"] = {"prompt": [*prompt, _user(f"{a}+{b}")], "answer": str(a + b)}
        return list(rows.values())

    def reset(self, row: Mapping[str, Any]) -> None:
        """Begin with the problem of a row."""
        self._answer = str(row["answer"])

    def step(self, message: Message) -> Reply:
        """Judge the answer; calls of the tool are run before."""
        numbers = re.findall(r"\d+", message["content"].replace(",", ""))
        return [], float(numbers == [self._answer]), True, {}


def _user(question: str) -> Message:
    return {"role": "user", "content": question}


def _answered(question: str, answer: int) -> list[Message]:
    return [_user(question), {"role": "assistant", "content": str(answer)}]


def _called(question: str, answer: int) -> list[Message]:
    function = {"name": "calculator", "arguments": {"expression": question}}
    call = {"type": "function", "id": "call00000", "function": function}
    return [
        _user(question),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculator", "content": str(answer), "tool_call_id": "call00000"},
        {"role": "assistant", "content": str(answer)},
    ]


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("only numbers with + - * / and round brackets can be computed")
