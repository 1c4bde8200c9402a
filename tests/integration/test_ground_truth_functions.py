"""The check of ground truths in scoring processes: by functions of the user, and as LaTeX."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from adagrpo_ray.errors import RewardError
from tests.support.ground_truths import check, config_of

MODULE = """
import time

def exactly(completions, answer, **context):
    return [float(text == answer) for text in completions]

def boxed(completions, answer, **context):
    return [float("boxed{" + answer in text) for text in completions]

def never(completions, **context):
    return [0.0 for _ in completions]

def nothing(completions, **context):
    return [None for _ in completions]

def forgets(completions, **context):
    return None

def texts(completions, **context):
    return ["1.0" for _ in completions]

def first(completions, **context):
    return [1.0]

def nan(completions, **context):
    return [float("nan") for _ in completions]

def some(completions, answer, **context):
    if answer == "1":
        raise ValueError("not this one")
    return [1.0 for _ in completions]

def slow(completions, **context):
    time.sleep(60)
    return [1.0 for _ in completions]

def slowly(completions, **context):
    time.sleep(0.4)
    return [1.0 for _ in completions]
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the user's functions into the current directory, from which scoring processes load them."""
    (tmp_path / "own_scores.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_scores", raising=False)


def test_user_function_that_counts_none_as_correct_is_a_warning() -> None:
    (notice,) = check(config_of("own_scores:never"), "42", "43")
    assert "'own_scores:never' counts none of 2 ground truths as correct" in notice


@pytest.mark.parametrize("name", ["exactly", "boxed"])
def test_user_function_may_require_another_format(name: str) -> None:
    assert check(config_of(f"own_scores:{name}"), "42", "43") == ()


def test_warning_names_function_that_rewards_no_ground_truth() -> None:
    notices = check(config_of("own_scores:nothing", "number", "exact"), "Paris", "Rome")
    assert "'own_scores:nothing' applies to none of 2 ground truths" in notices[0]
    assert "'number' rewards none of 2 ground truths" in notices[1]
    assert "scores -2.5" in notices[1]


FORGETS = "returned None; return a list"


@pytest.mark.parametrize(
    ("name", "expected", "on_error"),
    [
        ("forgets", FORGETS, "drop"),
        ("forgets", FORGETS, "score"),
        ("forgets", FORGETS, "stop"),
        ("texts", "returned the score '1.0'", "drop"),
        ("first", "returned 1 scores for 3 completions", "drop"),
        ("nan", "returned the score nan", "drop"),
    ],
)
def test_broken_contract_is_an_error(name: str, expected: str, on_error: str) -> None:
    with pytest.raises(RewardError, match=rf"'own_scores:{name}' {expected}.*of 2 prompts.*2 cannot be scored: change"):
        check(config_of(f"own_scores:{name}", on_error=on_error), "42", "43")


def test_some_unscorable_ground_truths_are_a_warning_or_on_error() -> None:
    (notice,) = check(config_of("own_scores:some"), "1", "2", "3")
    assert "raised ValueError('not this one')" in notice
    assert "of 3 prompts, tried with their own ground truth as the completion, 1 cannot be scored" in notice
    with pytest.raises(RewardError, match="1 cannot be scored: change the function"):
        check(config_of("own_scores:some", on_error="stop"), "1", "2", "3")


def test_hanging_function_takes_its_time_limit_once() -> None:
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"did not finish within rewards\.timeout_s=1;"):
        check(config_of("own_scores:slow", timeout_s=1.0), *range(9))
    assert time.monotonic() - began < 45


def test_check_of_slow_function_ends_after_timeout() -> None:
    with pytest.raises(RewardError, match=r"counts none of [2-5] ground truths"):
        check(config_of("own_scores:slowly", "exact", correct_above=1.0, timeout_s=1.0), *range(60))


def test_check_can_be_disabled_and_stopped() -> None:
    assert check(config_of("own_scores:forgets", check_prompts=0), "42") == ()
    stop = threading.Event()
    stop.set()
    assert check(config_of("own_scores:slow"), "42", stop=stop) == ()


def test_format_that_no_prompt_asks_for_is_a_warning() -> None:
    (notice,) = check(config_of("latex", "exact", data={"system_prompt": None}), "42", "43")
    assert "exact reward only an answer after 'SOLUTION_START_FLAG'" in notice
    assert "none of 2 prompts asks for it: set data.system_prompt" in notice
    assert check(config_of("latex", data={"system_prompt": None}), "42") == ()


def test_ground_truths_that_latex_rewards_give_no_warning() -> None:
    assert check(config_of("latex"), "42", 5.0, 1e16, "1,000", "1/2", "Natalia sold 72.\n#### 72") == ()
