"""The embedded task: solutions worked by hand, and properties of the generated sets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.config.data import ArithmeticSettings, FormatSettings
from adagrpo_ray.data.arithmetic import Problem, count_problems, draw_problem, problem_sets, worked_solution
from adagrpo_ray.errors import ConfigError, DataError

MARKERS = FormatSettings()


def solution(a: int, b: int, keep: bool) -> str:
    return worked_solution(Problem(a, b), keep, MARKERS)


def test_kept_carries_give_correct_sum():
    assert solution(345, 278, keep=True) == (
        "<think>5+8+0=13\n4+7+1=12\n3+2+1=6</think>SOLUTION_START_FLAG623SOLUTION_END_FLAG"
    )


def test_dropped_carries_give_sum_of_each_column():
    assert solution(345, 278, keep=False) == (
        "<think>5+8+0=13\n4+7+0=11\n3+2+0=5</think>SOLUTION_START_FLAG513SOLUTION_END_FLAG"
    )


def test_top_column_is_written_in_full_either_way():
    assert solution(99, 99, keep=True).endswith("9+9+1=19</think>SOLUTION_START_FLAG198SOLUTION_END_FLAG")
    assert solution(99, 99, keep=False).endswith("9+9+0=18</think>SOLUTION_START_FLAG188SOLUTION_END_FLAG")


def test_markers_are_those_of_the_settings():
    markers = FormatSettings(think_end="</t>", answer_start="[", answer_end="]")
    assert worked_solution(Problem(15, 17), True, markers) == "<think>5+7+0=12\n1+1+1=3</t>[32]"


@pytest.mark.parametrize("digits", [2, 3, 5, 9])
def test_only_kept_carries_give_correct_answer(digits: int):
    rng = np.random.default_rng(digits)
    for _ in range(200):
        problem = draw_problem(rng, digits)
        a, _, b = problem.text.partition("+")
        assert len(a) == len(b) == digits == problem.digits
        right = f"{MARKERS.answer_start}{problem.answer}{MARKERS.answer_end}"
        assert worked_solution(problem, True, MARKERS).endswith(right)
        assert not worked_solution(problem, False, MARKERS).endswith(right)


@pytest.mark.parametrize("digits", [2, 3])
def test_count_problems_equals_enumeration(digits: int):
    numbers = np.arange(10 ** (digits - 1), 10**digits)
    a, b = numbers[:, None], numbers[None, :]
    carries = np.zeros((len(numbers), len(numbers)), bool)
    for place in range(digits - 1):
        carries |= a // 10**place % 10 + b // 10**place % 10 >= 10
    assert count_problems(digits) == carries.sum()


def test_sets_have_distinct_problems_in_equal_shares():
    train, held_out = problem_sets(ArithmeticSettings(), 400, 40)
    assert (len(train), len(held_out), len({*train, *held_out})) == (400, 40, 440)
    assert [p.difficulty for p in train[:5]] == ["2 digits", "3 digits", "4 digits", "5 digits", "2 digits"]
    assert set(Counter(p.difficulty for p in train).values()) == {100}
    assert set(Counter(p.difficulty for p in held_out).values()) == {10}


def test_sets_depend_on_the_seed_alone():
    settings = ArithmeticSettings()
    train, held_out = problem_sets(settings, 100, 20)
    more, same = problem_sets(settings, 300, 20)
    assert (more[:100], same) == (train, held_out)
    other, _ = problem_sets(ArithmeticSettings(seed=1), 100, 20)
    assert other != train


def test_more_problems_than_a_class_has_are_refused():
    settings = ArithmeticSettings(keep_carry={2: 0.5})
    train, held_out = problem_sets(settings, 3600, 45)
    assert len({*train, *held_out}) == 3645 == count_problems(2)
    with pytest.raises(DataError, match=r"has 3645 problems of 2 digits, and 3646 .* data\.train_prompts"):
        problem_sets(settings, 3601, 45)


@pytest.mark.parametrize("digits", [1, 10])
def test_invalid_digits_are_refused(digits: int):
    with pytest.raises(ConfigError, match=rf"arithmetic\.keep_carry\.{digits}"):
        Config.load(None, [f"arithmetic.keep_carry={{{digits}: 0.5}}"])
