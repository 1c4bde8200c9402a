"""A ladder of the user's own: a function, or a subclass of Ladder, whose results are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adagrpo_ray.algorithm.ladder import Ladder
from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.algorithm.own_ladder import MOST_RESAMPLES, load_ladder
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.given import give
from adagrpo_ray.types import Group, SamplingParams
from tests.support.builders import make_group, make_prompt

BASE, WARM, HOT = SamplingParams(), SamplingParams(temperature=1.2), SamplingParams(temperature=1.6)
TRIGGERS = Ladder(BASE, ((1, (WARM, HOT)),))


def own(ladder: Callable[..., Any]) -> Ladder:
    return load_ladder("mine", TRIGGERS, give({("algorithm.ladder", "mine"): ladder}))


def test_a_ladder_function_is_called_after_each_failed_attempt() -> None:
    def ladder(group: Group, step: int) -> SamplingParams | None:
        return SamplingParams(temperature=1.0 + step / 10) if len(group.attempts) < 3 else None

    group = make_group()
    results = []
    for _ in range(4):
        results.append(own(ladder).next(group, step=5))
        group = group.with_attempt(make_group([0.0]).last)
    assert results == [BASE, SamplingParams(temperature=1.5), SamplingParams(temperature=1.5), None]


def test_a_ladder_function_gets_the_prompt() -> None:
    ladder = own(lambda group, step: HOT if group.prompt.difficulty == "hard" else None)
    assert ladder.next(make_group([0], prompt=make_prompt(difficulty="hard")), 1) == HOT
    assert ladder.next(make_group([0], prompt=make_prompt(difficulty="easy")), 1) is None


def test_a_ladder_subclass_has_the_configured_rungs() -> None:
    class Impatient(Ladder):
        def next(self, group: Group, step: int) -> SamplingParams | None:
            return super().next(group, step) if len(group.attempts) < 2 else None

    ladder = own(Impatient)
    assert [ladder.next(make_group(*[[0]] * n), 1) for n in range(3)] == [BASE, WARM, None]
    assert ladder.height == 2


def test_none_for_a_first_attempt_means_the_base_parameters() -> None:
    class Nothing(Ladder):
        def next(self, group: Group, step: int) -> SamplingParams | None:
            return None

    assert own(Nothing).next(make_group(), 1) == BASE


def test_an_endless_ladder_ends_after_the_most_resamples() -> None:
    ladder = own(lambda group, step: HOT)
    assert ladder.next(make_group(*[[0]] * MOST_RESAMPLES), 1) == HOT
    assert ladder.next(make_group(*[[0]] * (MOST_RESAMPLES + 1)), 1) is None


def leaves(group: Group, step: int) -> SamplingParams:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("ladder", "message"),
    [
        (leaves, r"'mine' raised SystemExit\(3\) \(.*test_own_ladder\.py, line \d+\)"),
        (lambda group, step: 1.2, r"'mine' returned 1\.2; have it return SamplingParams, or None"),
        (
            lambda group, step: SamplingParams(temperature=3.0),
            r"'mine' made parameters with temperature=3\.0: input should be less than or equal to 2",
        ),
        (
            lambda group, step: HOT.model_copy(update={"answer": HOT.model_copy(update={"top_p": 2.0})}),
            r"'mine' returned .*; answer\.top_p=2\.0: input should be",
        ),
        (lambda group, step: SamplingParams(temperature=0.0), "a temperature of 0 draws the same completion again"),
        (
            lambda group, step: SamplingParams(answer=SamplingParams(top_p=2.0)),
            r"'mine' made parameters with top_p=2\.0: input should be",
        ),
    ],
)
def test_an_error_of_a_ladder_names_it(ladder: Callable[..., Any], message: str) -> None:
    with pytest.raises(ExtensionError, match=message):
        own(ladder).next(make_group([0]), 1)


async def asynchronous(group: Group, step: int) -> SamplingParams:
    return HOT


class Awaited(Ladder):
    async def next(self, group: Group, step: int) -> SamplingParams | None:  # type: ignore[override]
        return HOT


class Stepless(Ladder):
    def next(self, group: Group) -> SamplingParams | None:  # type: ignore[override]
        return HOT


@pytest.mark.parametrize(
    ("ladder", "message"),
    [
        (lambda group: HOT, r"'mine' takes \(group\), and is called with \(group, step\): too many"),
        (lambda group, step, more: HOT, r".*missing a required argument: 'more'"),
        (asynchronous, r"'mine' is a coroutine function"),
        (Awaited, r"'mine': its method next is a coroutine function"),
        (Stepless, r"'mine': its method next takes \(group"),
    ],
)
def test_a_ladder_with_the_wrong_signature_is_refused_on_loading(ladder: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.ladder: " + message):
        own(ladder)


def test_a_class_that_is_not_a_ladder_is_refused() -> None:
    class Two:
        def __init__(self, base: SamplingParams, triggers: object) -> None: ...

    class Other(Ladder):
        def __init__(self, base: SamplingParams) -> None: ...

    with pytest.raises(ExtensionError, match="'mine' is a class, but not a Ladder"):
        own(Two)
    with pytest.raises(ExtensionError, match="constructing 'mine' raised TypeError"):
        own(Other)


def test_the_configuration_may_name_a_ladder(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "my_ladders.py").write_text(
        "from adagrpo_ray import SamplingParams\ndef warm(group, step): return SamplingParams(temperature=1.2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = AlgorithmSettings(ladder="my_ladders:warm")
    assert make_method(settings, ["exact"]).ladder.next(make_group([0]), 1) == WARM
    with pytest.raises(
        ConfigError, match=r"algorithm\.ladder: 'warm' is not built in; use your own as 'module:function'"
    ):
        make_method(AlgorithmSettings(ladder="warm"), ["exact"])
