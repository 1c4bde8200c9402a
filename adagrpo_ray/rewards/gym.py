"""The reward function of reasoning-gym: the score that the task of a problem gives to an answer."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.reasoning_gym import REASONING_GYM
from adagrpo_ray.data.gym_tasks import make_dataset, settings_key
from adagrpo_ray.errors import ConfigError, RewardError
from adagrpo_ray.rewards.extract import after_thought, marked_answer

if TYPE_CHECKING:
    from adagrpo_ray.config.data import FormatSettings

EVALUATE_LISTS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Tasks that read a list from an answer by Python's `eval`."""

EVALUATE_FORMULAS = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Tasks that read an answer by sympy's `parse_expr`, which evaluates it as Python."""

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FORMULA = re.compile(r"[A-Za-z0-9\s+\-*/^(),.]*")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
# A dot next to a letter accesses an attribute; only digits may have a dot ("1.5", "2.").
_ATTRIBUTE = re.compile(r"\.\s*[A-Za-z]|[A-Za-z)]\s*\.")
_FUNCTIONS = frozenset(
    {
        *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
        *("exp", "log", "ln", "sqrt", "pi", "abs", "Abs"),
    }
)


def reasoning_gym(
    completions: list[str], *, format: FormatSettings, columns: Mapping[str, Any], **context: object
) -> list[float]:
    """Return the score that the task's verifier gives to each answer: 1.0 if correct, less for some wrong answers.

    The answer is the text in the last pair of answer markers, else in the last <answer> tags, else the whole text. If
    there is a think end, only the text after it is used.

    | the answer | score |
    | --- | --- |
    | is correct | 1.0 |
    | is wrong | 0.0, or less than 1.0, depending on the task |
    | makes the verifier fail, or is code that the verifier would run | 0.0 |
    """
    entry: Mapping[str, Any] = columns["entry"]
    task: str = columns["task"]
    try:
        dataset = _dataset(task, settings_key(columns["task_config"]))
    except ConfigError as error:
        raise RewardError(f"reward function {REASONING_GYM!r}: {error}") from None
    return [_score(dataset, task, entry, gym_answer(text, format)) for text in completions]


def gym_answer(text: str, format: FormatSettings) -> str:
    """Return the answer in a completion, without white space around it."""
    marked = marked_answer(text, format)
    if marked is not None:
        return marked.strip()
    rest = after_thought(text, format)
    rest = text if rest is None else rest
    tagged = _TAGGED.findall(rest) if "</answer>" in rest else []
    return (tagged[-1] if tagged else rest).strip()


def runs_code(task: str, answer: str) -> bool:
    """Return whether the task's verifier would run a part of the answer that is neither a value nor a formula.

    A Python expression without a round bracket calls no function.
    """
    if task in EVALUATE_LISTS:
        return "(" in answer and not _is_literal(answer)
    if task in EVALUATE_FORMULAS:
        names = _NAME.findall(re.sub(r"(?<![A-Za-z])[0-9]+", " ", answer))
        return (
            _FORMULA.fullmatch(answer) is None
            or _ATTRIBUTE.search(answer) is not None
            or any(len(name) > 1 and name not in _FUNCTIONS for name in names)
        )
    return False


def _score(dataset: Any, task: str, entry: Mapping[str, Any], answer: str) -> float:
    if runs_code(task, answer):
        return 0.0
    try:
        score = float(dataset.score_answer(answer, dict(entry)))
    except MemoryError:
        raise
    except Exception:  # verifiers do not handle every text of a model
        _check_verifier(dataset, task, entry)
        return 0.0
    return score if math.isfinite(score) else 0.0


def _check_verifier(dataset: Any, task: str, entry: Mapping[str, Any]) -> None:
    """Raise RewardError if the verifier fails on its own answer too: then the completion is not the cause."""
    try:
        dataset.score_answer(entry["answer"], dict(entry))
    except MemoryError:
        raise
    except Exception as error:
        raise RewardError(
            f"the verifier of {task} raised {error!r:.200} for its own answer; remove the task"
        ) from error


@lru_cache(maxsize=64)
def _dataset(task: str, config: str) -> Any:
    """Return a data set of the task, whose verifier scores any problem of it. Creating it takes up to a second."""
    return make_dataset(task, json.loads(config))


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False
    return True
