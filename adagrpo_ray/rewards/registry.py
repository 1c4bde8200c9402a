"""From a name in the configuration to a reward function, and from reward functions to a group's scores."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adagrpo_ray.errors import ConfigError, RewardError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.extensions.loading import check_kind, load_function, signature
from adagrpo_ray.rewards import functions as built_in
from adagrpo_ray.rewards.gym import reasoning_gym
from adagrpo_ray.rewards.latex import latex
from adagrpo_ray.types import Floats

if TYPE_CHECKING:
    from adagrpo_ray.config.data import FormatSettings

RewardFunction = Callable[..., Sequence[float | None]]

BUILTIN: Mapping[str, RewardFunction] = {
    "answer": built_in.answer,
    "exact": built_in.exact,
    "format_approximate": built_in.format_approximate,
    "format_exact": built_in.format_exact,
    "latex": latex,
    "number": built_in.number,
    "reasoning_gym": reasoning_gym,
}

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Scores:
    """What one group scored: `rewards` [G] weighted totals, `by_function` [G, F] raw, NaN where not applicable.

    Where `error` says why it could not be scored, all rewards are `rewards.error_score` and no function applies.
    """

    rewards: Floats
    by_function: Floats
    error: str | None = None


WORDS = ("completions", "answer", "prompt", "format", "difficulty", "columns")
"""Arguments of each reward function; the columns of the prompt's row are given too."""

SETTING = "rewards.functions"
"""Names the reward functions."""


def load_reward(name: str, given: Given = NOTHING) -> RewardFunction:
    """The reward function of a built-in name, of a given one or of 'module:function'; RewardError where there is none.

    Modules are looked for in the current directory too.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    try:
        function = load_function(name, SETTING, list(BUILTIN), given)
        check_kind(function, f"{SETTING}: {name!r}")
    except ConfigError as error:
        raise RewardError(str(error)) from error
    check_parameters(function, name)
    return function


def check_parameters(function: RewardFunction, name: str, rows: Sequence[Mapping[str, object]] | None = None) -> str:
    """Raise RewardError unless the function takes what `score_group` hands over for prompts with these columns.

    Without `rows` the columns are not known yet, and missing ones are not reported. Returns a notice if some rows
    only lack a column, else "".
    """
    known = signature(function)
    if known is None:
        return ""
    parameters = known.parameters.values()
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    columns = {column for row in rows or () for column in row}
    what = f"{SETTING}: {name!r} takes {known}"
    extra = [word for word in (*WORDS, *sorted(columns - set(WORDS))) if word not in taken]
    if extra and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise RewardError(f"{what}, and is called with {', '.join(extra)} too; let its parameters end with **context")
    if by_place := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]:
        raise RewardError(f"{what}, and is called by keyword; take {by_place[0]} without the slash")
    lacking = sorted(needed - {*WORDS, *columns})
    if rows is not None and lacking:
        there = ", ".join(sorted(columns)) or "none"
        raise RewardError(
            f"{what}, and {lacking[0]!r} is no column of the data (which has {there}); "
            "add the column, or give the parameter a default value"
        )
    for column in sorted(needed - set(WORDS)):
        if short := sum(column not in row for row in rows or ()):
            return f"{what}, and {short} of {len(rows or ())} rows have no column {column!r}: it cannot score them"
    return ""


def score_group(
    functions: Sequence[tuple[RewardFunction, float]],
    *,
    completions: Sequence[str],
    answer: str,
    prompt: str,
    format: FormatSettings,
    difficulty: str = "",
    columns: Mapping[str, object] | None = None,
) -> Scores:
    """Call each (function, weight) on the group and add up.

    RewardError where one breaks the contract; a MemoryError comes out as itself, since then the process should end.
    A function gets each column of the row under its own name, and all of them as `columns`, which also holds a column
    that has the name of another argument. A completion's reward is the weighted sum of the scores that apply to it,
    0.0 if none does.
    Worked example: scores [3.0, None] with weights [0.5, 1.0] make 1.5.
    """
    # Last come our own words: a column of such a name must not take their place, and is in `columns`.
    row = dict(columns or {})
    context = {**row, "columns": row, "answer": answer, "prompt": prompt, "format": format, "difficulty": difficulty}
    raw = np.empty((len(completions), len(functions)), dtype=np.float32)
    totals = np.zeros(len(completions))
    for column, (function, weight) in enumerate(functions):
        # A list of its own, so that a function that edits it harms nobody else.
        scores = _call(function, {**context, "completions": list(completions)}, len(completions))
        raw[:, column] = scores
        totals += [0.0 if math.isnan(score) else weight * score for score in scores]
    if not np.all(np.abs(totals) <= _LARGEST):
        raise RewardError(
            f"rewards.functions {', '.join(_name(f) for f, _ in functions)} add up to more than float32 holds; "
            "return smaller scores or lower rewards.functions' weights"
        )
    return Scores(rewards=totals.astype(np.float32), by_function=raw)


def _call(function: RewardFunction, arguments: dict[str, object], wanted: int) -> list[float]:
    """One function's `wanted` scores, NaN for None, its contract checked."""
    name = _name(function)
    try:
        returned: object = function(**arguments)
        if inspect.iscoroutine(returned):
            returned.close()  # or Python warns that nothing awaited it
        if isinstance(returned, np.ndarray):
            returned = returned.tolist()
        is_list = isinstance(returned, Sequence) and not isinstance(returned, str | bytes)
        scores: list[object] = list(returned) if is_list else []  # type: ignore[call-overload]
    except MemoryError:
        raise
    except BaseException as error:  # it may raise anything, and so may what it returned
        raise RewardError(
            f"reward function {name} raised {_short(error)}; "
            "it must take completions, answer and **context, and score any text"
        ) from error
    if not is_list:
        raise RewardError(f"reward function {name} returned {_short(returned)}; return a list, one score a completion")
    if len(scores) != wanted:
        raise RewardError(
            f"reward function {name} returned {len(scores)} scores for {wanted} completions; "
            "return one score a completion, None where it does not apply"
        )
    return [_number(score, name) for score in scores]


def _number(score: object, name: str) -> float:
    """A score as a float that float32 can hold, NaN for None."""
    if score is None:
        return math.nan
    if isinstance(score, numbers.Real | np.bool_):
        try:
            value = float(score)
        except BaseException:  # too large a number, or one of the user's own kind
            value = math.inf
        if abs(value) <= _LARGEST:  # which NaN is not
            return value
    raise RewardError(
        f"reward function {name} returned the score {_short(score)}; "
        "return finite numbers, None where it does not apply"
    )


def _name(function: RewardFunction) -> str:
    """What the configuration calls the function."""
    for name, known in BUILTIN.items():
        if known is function:
            return repr(name)
    kind = function if hasattr(function, "__qualname__") else type(function)
    return repr(f"{kind.__module__}:{kind.__qualname__}")


def _short(value: object) -> str:
    try:
        return f"{value!r:.300}"
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"
