"""Each kind of criterion, and the messages about bad settings."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from adagrpo_ray.algorithm.criterion import make_criterion
from adagrpo_ray.config.algorithm import CriterionSettings
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.given import give
from adagrpo_ray.types import Group
from tests.support.builders import make_attempt, make_group

FUNCTIONS = ("format", "answer")


def satisfied(group: Group, **settings: object) -> bool:
    return make_criterion(CriterionSettings.model_validate(settings), FUNCTIONS)(group)


def scored(*rows: tuple[float, float]) -> Group:
    """A group whose completions score (format, answer); none counts as correct."""
    totals = [sum(s for s in row if not math.isnan(s)) for row in rows]
    return make_group(make_attempt(totals, by_function=rows, correct=[False] * len(rows)))


def test_any_correct_ignores_rewards() -> None:
    assert satisfied(make_group(make_attempt([-1, -1], correct=[False, True])), kind="any_correct")
    assert not satisfied(make_group(make_attempt([9, 9], correct=[False, False])), kind="any_correct")


def test_any_correct_uses_only_the_last_attempt() -> None:
    assert satisfied(make_group([0, 0], [0, 1]), kind="any_correct")
    assert not satisfied(make_group([0, 1], [0, 0]), kind="any_correct")


def test_any_above_uses_the_total_reward_by_default() -> None:
    group = scored((3, -2), (0, -2))  # totals 1 and -2
    assert satisfied(group, kind="any_above", threshold=0.5)
    assert not satisfied(group, kind="any_above", threshold=1.0)  # above, not at


@pytest.mark.parametrize(("column", "expected"), [("format", True), ("answer", False)])
def test_any_above_uses_the_named_function(column: str, expected: bool) -> None:
    assert satisfied(scored((3, -2), (0, -2)), kind="any_above", reward=column) is expected


def test_any_above_uses_only_the_last_attempt() -> None:
    assert not satisfied(make_group([5, 0], [0, 0]), kind="any_above")


def test_any_above_ignores_scores_that_do_not_apply() -> None:
    assert not satisfied(scored((3, math.nan), (3, math.nan)), kind="any_above", reward="answer", threshold=-100)
    assert satisfied(scored((3, math.nan), (3, 5)), kind="any_above", reward="answer")


@pytest.mark.parametrize(
    ("rewards", "threshold", "expected"),
    # The std of [0, 2] is 1.414.
    [([1, 1, 1], 0.0, False), ([1, 1, 2], 0.0, True), ([0, 2], 1.4, True), ([0, 2], 1.5, False)],
)
def test_spread_needs_rewards_that_differ(rewards: list[float], threshold: float, expected: bool) -> None:
    assert satisfied(make_group(rewards), kind="spread", threshold=threshold) is expected


@pytest.mark.parametrize(
    ("size", "attempts", "expected"),
    [
        (4, [[1, 1, 0, 0]], True),
        (4, [[1, 0, 0, 0]], False),
        (4, [[1, 0, 0, 0], [0, 0, 1, 0]], True),  # over all attempts
        (4, [[1, 1, 1, 1], [1, 1, 1, 0]], False),  # too few wrong ones, as in a group that is solved
        (5, [[1, 1, 0, 0, 0]], False),  # three of each
        (5, [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], True),
    ],
)
def test_balanced_needs_half_of_the_group_of_each_kind(size: int, attempts: list[list[float]], expected: bool) -> None:
    assert satisfied(replace(make_group(*attempts), size=size), kind="balanced") is expected


def test_spread_uses_all_attempts() -> None:
    assert satisfied(make_group([0, 0], [1, 1]), kind="spread")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of the user."""
    (tmp_path / "my_criteria.py").write_text(
        "limit = 3\n"
        "def two_tries(group): return len(group.attempts) >= 2\n"
        "def raises(group): return group.nothing\n"
        "def leaves(group): raise SystemExit(3)\n"
        "def counts(group): return int(group.last.correct.sum())\n"
    )
    (tmp_path / "broken_criteria.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("my_criteria", "broken_criteria"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_a_function_of_the_user_is_called() -> None:
    assert not satisfied(make_group([1]), kind="my_criteria:two_tries")
    assert satisfied(make_group([0], [0]), kind="my_criteria:two_tries")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("my_criteria:three_tries", "has no 'three_tries', which"),
        ("my_criteria:limit", "'my_criteria:limit' is 3, which cannot be called"),
        ("no_such_criteria:f", "the module of 'no_such_criteria:f' is not there"),
        ("broken_criteria:f", "raised ModuleNotFoundError(\"No module named 'no_such_module'\")"),
        ("my_criteria:", "or your own as 'module:function'"),
        (":two_tries", "or your own as 'module:function'"),
    ],
)
def test_an_error_about_a_missing_function_names_setting_and_value(kind: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        satisfied(make_group([1]), kind=kind)
    assert "algorithm.criterion.kind" in str(raised.value)
    assert repr(kind.partition(":")[0])[1:-1] in str(raised.value)
    assert message in str(raised.value)


def test_a_misspelled_kind_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.criterion\.kind: 'any_corect'.*did you mean 'any_correct'\?"):
        satisfied(make_group([1]), kind="any_corect")


def test_an_unknown_kind_gets_a_list_of_all_kinds() -> None:
    known = "any_correct, any_above, spread, balanced, or your own as 'module:function'"
    with pytest.raises(ConfigError, match=f"'xyz'.*use one of {known}"):
        satisfied(make_group([1]), kind="xyz")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "raises",
            r"raised AttributeError\(\"'Group' object has no attribute 'nothing'\"\) \(.*my_criteria\.py, line 3\)",
        ),
        ("leaves", r"raised SystemExit\(3\)"),
        ("counts", "returned 1; have it return True or False"),
    ],
)
def test_an_error_of_a_criterion_names_it(name: str, message: str) -> None:
    with pytest.raises(ExtensionError, match=rf"algorithm\.criterion\.kind: 'my_criteria:{name}' {message}"):
        satisfied(make_group([1]), kind=f"my_criteria:{name}")


def test_a_given_function_is_found_by_its_name() -> None:
    wanted = 2
    given = give({("algorithm.criterion.kind", "enough"): lambda group: group.last.correct.sum() >= wanted})
    criterion = make_criterion(CriterionSettings(kind="enough"), FUNCTIONS, given)
    assert criterion(make_group([1, 1])) is True
    assert criterion(make_group([0, 1])) is False
