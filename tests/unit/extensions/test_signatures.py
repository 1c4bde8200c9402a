"""Functions of the user with wrong parameters are refused before anything starts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from adagrpo_ray import Callback, Config, ConfigError, Group, RewardError, train
from adagrpo_ray.algorithm.criterion import make_criterion
from adagrpo_ray.config.algorithm import CriterionSettings
from adagrpo_ray.extensions.given import give
from adagrpo_ray.extensions.loading import is_coroutine_function
from adagrpo_ray.rewards.registry import SETTING, check_parameters, load_reward, score_group
from adagrpo_ray.runs.records import StepRecord


class Scorer:
    """A class with callable objects, which may be given by mistake."""

    def __call__(self, completions: list[str], **context: object) -> list[float]:
        return [1.0 for _ in completions]

    def score(self, completions: list[str], answer: str, **context: object) -> list[float]:
        return [2.0 for _ in completions]


class Asynchronous:
    async def __call__(self, completions: list[str], **context: object) -> list[float]:
        return [8.0 for _ in completions]


async def awaited(completions: list[str], **context: object) -> list[float]:
    return [7.0 for _ in completions]


def hidden(**context: Any) -> Any:
    """Return a coroutine, as a decorated coroutine function does."""
    return awaited(**context)


async def awaited_one_by_one(completions: list[str], **context: object) -> Any:
    yield 1.0


def one_by_one(completions: list[str], **context: object) -> Any:
    yield 1.0


def without_context(completions: list[str], answer: str) -> list[float]:
    return []


def by_place(completions: list[str], /, **context: object) -> list[float]:
    return []


def units(completions: list[str], answer: str, unit: str, **context: object) -> list[float]:
    return [3.0 for _ in completions]


def named(
    completions: list[str], answer: str, prompt: str, format: object, difficulty: str, columns: object
) -> list[float]:
    return [4.0 for _ in completions]


@functools.wraps(without_context)
def wrapper(*arguments: Any, **context: Any) -> list[float]:
    return [5.0 for _ in context["completions"]]


def load(function: Callable[..., Any]) -> Any:
    return load_reward("mine", give({(SETTING, "mine"): function}))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Scorer, "'mine' is a class; give a function, or a callable object"),
        (functools.partial(Scorer), "'mine' is a class"),
        (awaited_one_by_one, "'mine' is a generator function; return a list"),
        (one_by_one, "'mine' is a generator function; return a list"),
        (
            without_context,
            r"'mine' takes \(completions.*\), and is called with prompt, format, difficulty, columns too; "
            r".*\*\*context",
        ),
        (lambda: [], ".*is called with completions, answer, prompt, format, difficulty, columns too"),
        (by_place, ".*take completions without the slash"),
        (len, "'mine' takes .*is called with completions"),
    ],
)
def test_uncallable_reward_function_is_refused(function: Any, expected: str) -> None:
    with pytest.raises(RewardError, match=rf"rewards\.functions: {expected}"):
        load(function)


@pytest.mark.parametrize(
    ("function", "score"),
    [
        (Scorer(), 1.0),
        (Scorer().score, 2.0),
        (functools.partial(units, unit="m"), 3.0),
        (named, 4.0),
        (wrapper, 5.0),
        (lambda completions, **_: [6.0 for _ in completions], 6.0),
        (awaited, 7.0),
        (functools.partial(awaited, unit="m"), 7.0),
        (Asynchronous(), 8.0),
        (hidden, 7.0),
    ],
)
def test_callables_with_right_parameters_are_reward_functions(function: Any, score: float) -> None:
    loaded = load(function)
    scores = score_group([(loaded, 1.0)], completions=["a", "b"], answer="", prompt="", format=Config().data.format)
    assert scores.rewards.tolist() == [score, score]


def test_missing_or_extra_columns_are_refused() -> None:
    assert check_parameters(units, "m:units", [{"unit": "m"}, {"unit": "s", "more": 1}]) == ""
    with pytest.raises(
        RewardError, match=r"'m:units' takes .*'unit' is no column of the data \(which has source\); add"
    ):
        check_parameters(units, "m:units", [{"source": "x"}])
    with pytest.raises(RewardError, match=r"and is called with source too; let its parameters end with \*\*context"):
        check_parameters(named, "m:named", [{"source": "x"}])
    assert "1 of 2 rows have no column 'unit'" in check_parameters(units, "m:units", [{"unit": "m"}, {}])


def test_functions_that_are_awaited_are_found() -> None:
    coroutines = (awaited, functools.partial(awaited, unit="m"), Asynchronous())
    assert [is_coroutine_function(function) for function in coroutines] == [True] * 3
    assert [is_coroutine_function(function) for function in (hidden, units, Scorer(), len)] == [False] * 4


async def decided(group: Group) -> bool:
    return True


class Decides:
    def __call__(self, group: Group) -> bool:
        return True


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (decided, "'mine' is a coroutine function"),
        (Decides, "'mine' is a class"),
        (lambda: True, r"'mine' takes \(\), and is called with \(group\): too many positional arguments"),
        (lambda group, step: True, ".*missing a required argument: 'step'"),
        (lambda *, group: True, ".*too many positional arguments"),
    ],
)
def test_uncallable_criterion_is_refused(criterion: Any, expected: str) -> None:
    key = "algorithm.criterion.kind"
    with pytest.raises(ConfigError, match=rf"algorithm\.criterion\.kind: {expected}"):
        make_criterion(CriterionSettings(kind="mine"), ["exact"], give({(key, "mine"): criterion}))
    assert make_criterion(CriterionSettings(kind="mine"), ["exact"], give({(key, "mine"): Decides()}))


class Awaits(Callback):
    async def step(self, record: StepRecord) -> None:  # type: ignore[override]
        """Never awaited."""


class Forgets(Callback):
    def evaluation(self, record: object) -> None:  # type: ignore[override]
        """Without the label."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"callbacks": [Awaits()]}, r"callbacks: Awaits\.step is a coroutine function"),
        (
            {"callbacks": [Forgets()]},
            r"callbacks: Forgets\.evaluation takes \(record.*\), and is called with \(label, record\)",
        ),
        ({"callbacks": Callback()}, r"callbacks is <.*Observer.*>; give a list"),
        ({"reward_functions": named}, r"reward_functions is <function named.*>; give a list"),
    ],
)
def test_uncallable_callback_methods_are_refused(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        train(Config(), progress=False, **arguments)
