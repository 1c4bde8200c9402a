"""Advantages from cached statistics: golden examples, and equality with the original's formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.algorithm.advantage import advantages
from adagrpo_ray.algorithm.statistics import RewardStatistics, statistics_of
from adagrpo_ray.types import Group
from tests.support.builders import make_group


def of_last(group: Group, epsilon: float = 1e-4, bound: float = 10.0) -> list[float]:
    return [float(a) for a in advantages(group.last.rewards, statistics_of(group), epsilon, bound)]


def original(rows: list[list[float]]) -> list[float]:
    """The original: all cached rows in one list, its mean and sample std, for the last row's completions."""
    cached = np.concatenate(rows)
    return [float((reward - cached.mean()) / (cached.std(ddof=1) + 1e-4)) for reward in rows[-1]]


def test_advantages_of_one_attempt_are_those_of_grpo() -> None:
    # Mean 1/2, squared deviations 4 * 1/4, std sqrt(1/3) = 0.577350; 0.5 / 0.577450 = 0.865875.
    assert of_last(make_group([1, 0, 1, 0])) == pytest.approx([0.865875, -0.865875] * 2, abs=1e-6)


def test_a_success_after_failures_has_a_large_advantage() -> None:
    # Mean 1/8; squared deviations 49/64 + 7/64 = 7/8, std sqrt(1/8) = 0.353553.
    # 0.875 / 0.353653 = 2.474174 and -0.125 / 0.353653 = -0.353453.
    assert of_last(make_group([0, 0, 0, 0], [1, 0, 0, 0])) == pytest.approx([2.474174] + [-0.353453] * 3, abs=1e-6)


def test_advantages_over_three_attempts_match_numbers_by_hand() -> None:
    # A wholly wrong completion scores -7.5, a wholly correct one 13.5. The sum of twelve is -30 - 24 - 6, the mean -5.
    # Squared deviations: nine of 2.5^2, then 3.5^2, 18.5^2, 0.5^2: 56.25 + 12.25 + 342.25 + 0.25 = 411;
    # std sqrt(411 / 11) = 6.112580. Then 18.5, -2.5, -2.5, 0.5 divided by 6.112680.
    group = make_group([-7.5] * 4, [-7.5, -7.5, -1.5, -7.5], [13.5, -7.5, -7.5, -4.5])
    assert of_last(group) == pytest.approx([3.026496, -0.408986, -0.408986, 0.081797], abs=1e-6)


def test_equal_rewards_have_no_advantage() -> None:
    assert of_last(make_group([0.1] * 4, [0.1] * 4)) == [0.0] * 4


def test_advantages_are_clipped_on_both_sides() -> None:
    statistics = RewardStatistics(count=1000, mean=0.0, m2=0.0)
    rewards = np.array([1.0, -1.0, 2e-4], np.float32)
    assert advantages(rewards, statistics, 1e-4, 3.0).tolist() == pytest.approx([3.0, -3.0, 2.0])


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    assert of_last(make_group([1, 0, 1, 0]), epsilon=1.0) == pytest.approx([0.5 / 1.5773503, -0.5 / 1.5773503] * 2)


@given(
    st.integers(2, 8).flatmap(
        lambda g: st.lists(
            st.lists(st.floats(-20, 20, width=32), min_size=g, max_size=g),
            min_size=1,
            max_size=17,
        )
    )
)
def test_advantages_equal_the_original_for_any_sequence_of_attempts(rows: list[list[float]]) -> None:
    assert of_last(make_group(*rows), bound=1e9) == pytest.approx(original(rows), rel=1e-6, abs=1e-6)
