"""Loading reward functions by the names in the configuration, and scoring a group with them."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.errors import ConfigError, RewardError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.extensions.loading import check_kind, load_function, signature
from adagrpo_ray.rewards import functions as built_in
from adagrpo_ray.rewards.gym import reasoning_gym
from adagrpo_ray.rewards.latex import latex
from adagrpo_ray.rewards.together import together
from adagrpo_ray.types import Floats

if TYPE_CHECKING:
    from adagrpo_ray.config.data import FormatSettings

RewardFunction = Callable[..., Sequence[float | None] | Coroutine[Any, Any, Sequence[float | None]]]
"""A reward function, or a coroutine function (`async def`)."""

BUILTIN: Mapping[str, Callable[..., Sequence[float | None]]] = {
    "answer": built_in.answer,
    "exact": built_in.exact,
    "format_approximate": built_in.format_approximate,
    "format_exact": built_in.format_exact,
    "latex": latex,
    "number": built_in.number,
    "reasoning_gym": reasoning_gym,
    "environment": built_in.environment,
}

_LARGEST = float(np.finfo(np.float32).max)

_runner: asyncio.Runner | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one group.

    `rewards` [G] are the weighted totals, `by_function` [G, F] the raw scores, NaN if a function does not apply.
    `error` is the reason if the group could not be scored. Then all rewards are the setting `rewards.error_score`, and
    all raw scores are NaN.
    """

    rewards: Floats
    by_function: Floats
    error: str | None = None


WORDS = ("completions", "answer", "prompt", "format", "difficulty", "columns")
"""Arguments of every reward function, in addition to the columns of the prompt's row."""

SETTING = "rewards.functions"
"""The setting with the reward functions, for messages."""


def load_reward(name: str, given: Given = NOTHING) -> RewardFunction:
    """Return the reward function called `name`: a built-in one, a given one, or 'module:function'.

    Modules are searched for in the current directory too. Raises RewardError if there is no such function.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    try:
        function = load_function(name, SETTING, list(BUILTIN), given)
        check_kind(function, f"{SETTING}: {name!r}", awaited=True)
    except ConfigError as error:
        raise RewardError(str(error)) from error
    check_parameters(function, name)
    return function


def check_parameters(function: RewardFunction, name: str, rows: Sequence[Mapping[str, object]] | None = None) -> str:
    """Check that the function takes the arguments of `score_group` for prompts with these rows.

    Without `rows` the columns are not known yet, and missing ones are not reported. Returns a notice if only some rows
    lack a column, else "". Raises RewardError if the function cannot be called with the arguments.
    """
    known = signature(function)
    if known is None:
        return ""
    parameters = known.parameters.values()
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    columns = {column for row in rows or () for column in row}
    takes = f"{SETTING}: {name!r} takes {known}"
    extra = [word for word in (*WORDS, *sorted(columns - set(WORDS))) if word not in taken]
    if extra and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise RewardError(f"{takes}, and is called with {', '.join(extra)} too; let its parameters end with **context")
    if by_place := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]:
        raise RewardError(f"{takes}, and is called by keyword; take {by_place[0]} without the slash")
    lacking = sorted(needed - {*WORDS, *columns})
    if rows is not None and lacking:
        there = ", ".join(sorted(columns)) or "none"
        raise RewardError(
            f"{takes}, and {lacking[0]!r} is no column of the data (which has {there}); "
            "add the column, or give the parameter a default value"
        )
    for column in sorted(needed - set(WORDS)):
        if short := sum(column not in row for row in rows or ()):
            return f"{takes}, and {short} of {len(rows or ())} rows have no column {column!r}: it cannot score them"
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
    """Call each (function, weight) on the group of G completions and return the scores.

    The reward of a completion is the weighted sum of the scores that apply to it, 0.0 if none does.
    Worked example: scores [3.0, None] with weights [0.5, 1.0] make 1.5.
    Raises RewardError if a function breaks its contract. A MemoryError passes through, since then the process should
    end.
    """
    known = context(answer, prompt, format, difficulty, columns or {})
    raw = call_each([function for function, _ in functions], completions, known)
    return weighted(raw, [weight for _, weight in functions], [_name(function) for function, _ in functions])


def context(
    answer: str, prompt: str, format: FormatSettings, difficulty: str, columns: Mapping[str, object]
) -> dict[str, object]:
    """Return the arguments of a reward function besides the completions.

    A function gets each column of the row under its own name, and all of them as `columns`, which also has a column
    with the name of another argument.
    """
    # Our own arguments are last, so that a column of the same name does not replace them. It is in `columns`.
    row = dict(columns)
    return {**row, "columns": row, "answer": answer, "prompt": prompt, "format": format, "difficulty": difficulty}


def call_each(
    functions: Sequence[RewardFunction], completions: Sequence[str], known: Mapping[str, object]
) -> NDArray[np.float64]:
    """Call the functions one after another; returns their scores [G, F], NaN for None.

    `known` is the result of `context`. Raises the errors of `score_group`.
    """
    raw = np.empty((len(completions), len(functions)))
    for column, function in enumerate(functions):
        raw[:, column] = _call(function, completions, known)
    return raw


async def await_all(
    functions: Sequence[RewardFunction], completions: Sequence[str], known: Mapping[str, object]
) -> NDArray[np.float64]:
    """Await coroutine functions side by side, with the arguments, result and errors of `call_each`."""
    columns = await together([_await(function, completions, known) for function in functions])
    return np.array(columns, dtype=np.float64).reshape(len(functions), len(completions)).T


def weighted(raw: NDArray[np.float64], weights: Sequence[float], names: Sequence[str]) -> Scores:
    """Return the scores of a group from the scores [G, F] of its functions, whose weights and names are given.

    Raises RewardError if a sum is more than float32 holds.
    """
    totals = np.zeros(len(raw))
    for column, weight in enumerate(weights):
        totals += [0.0 if math.isnan(score) else weight * score for score in raw[:, column].tolist()]
    if not np.all(np.abs(totals) <= _LARGEST):
        raise RewardError(
            f"rewards.functions {', '.join(names)} add up to more than float32 holds; "
            "return smaller scores or lower rewards.functions' weights"
        )
    return Scores(rewards=totals.astype(np.float32), by_function=raw.astype(np.float32))


def _call(function: RewardFunction, completions: Sequence[str], known: Mapping[str, object]) -> list[float]:
    """Return the scores of one function, NaN for None. Raises RewardError if it breaks its contract."""
    name = _name(function)
    try:
        # A new list for each function, which may edit it.
        returned: object = function(**{**known, "completions": list(completions)})
        if inspect.iscoroutine(returned):
            returned = _run(returned)
        returned = _without_numpy(returned)
        scores = _list_of(returned)
    except MemoryError:
        raise
    except BaseException as error:  # the function, and the object that it returned, may raise anything
        raise _raised(name, error) from error
    return _checked(scores, returned, len(completions), name)


def _run(coroutine: Coroutine[Any, Any, object]) -> object:
    """Return the result of a coroutine, in an event loop that lasts: functions may keep clients that belong to it."""
    global _runner
    if _runner is None:
        _runner = asyncio.Runner()
    return _runner.run(coroutine)


async def _await(function: RewardFunction, completions: Sequence[str], known: Mapping[str, object]) -> list[float]:
    """Return the scores of one coroutine function, as `_call`."""
    name = _name(function)
    try:
        returned: object = await function(**{**known, "completions": list(completions)})  # type: ignore[misc]
        returned = _without_numpy(returned)
        scores = _list_of(returned)
    except MemoryError:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise _raised(name, error) from error
    return _checked(scores, returned, len(completions), name)


def _without_numpy(returned: object) -> object:
    return returned.tolist() if isinstance(returned, np.ndarray) else returned


def _list_of(returned: object) -> list[object] | None:
    """Return the result of a reward function as a list; None if it is no sequence."""
    return list(returned) if isinstance(returned, Sequence) and not isinstance(returned, str | bytes) else None


def _raised(name: str, error: BaseException) -> RewardError:
    return RewardError(
        f"reward function {name} raised {_short(error)}; "
        "it must take completions, answer and **context, and score any text"
    )


def _checked(scores: list[object] | None, returned: object, wanted: int, name: str) -> list[float]:
    """Return the scores as numbers. Raises RewardError if they are not `wanted` finite numbers or None."""
    if scores is None:
        raise RewardError(
            f"reward function {name} returned {_short(returned)}; return a list with one score per completion"
        )
    if len(scores) != wanted:
        raise RewardError(
            f"reward function {name} returned {len(scores)} scores for {wanted} completions; "
            "return one score per completion, None if it does not apply"
        )
    return [_number(score, name) for score in scores]


def _number(score: object, name: str) -> float:
    """Return a score as a float in the range of float32, NaN for None."""
    if score is None:
        return math.nan
    if isinstance(score, numbers.Real | np.bool_):
        try:
            value = float(score)
        except BaseException:  # too large a number, or one of a class of the user
            value = math.inf
        if abs(value) <= _LARGEST:  # False for NaN
            return value
    raise RewardError(
        f"reward function {name} returned the score {_short(score)}; return finite numbers, None if it does not apply"
    )


def _name(function: RewardFunction) -> str:
    """Return the name of the function in the configuration."""
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
