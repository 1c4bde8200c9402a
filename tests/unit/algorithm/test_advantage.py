"""Advantages from cached statistics: golden examples, and equality with the original's formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.algorithm.advantage import advantages
from adagrpo_ray.algorithm.statistics import RewardStatistics, statistics_of
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.types import Group
from tests.support.builders import make_group

CLASSIC = {"advantage_scale": "std"}
"""The scale of GRPO and of the original; that of `adagrpo` is the mean by default."""

ATTEMPTS = st.integers(2, 8).flatmap(
    lambda g: st.lists(st.lists(st.floats(-20, 20, width=32), min_size=g, max_size=g), min_size=1, max_size=17)
)


def of_last(group: Group, batch: RewardStatistics | None = None, **settings: object) -> list[float]:
    """Advantages of the last attempt, with the statistics of all attempts; over their std unless set otherwise."""
    statistics, chosen = statistics_of(group), AlgorithmSettings.model_validate({**CLASSIC, **settings})
    return [float(a) for a in advantages(group.last.rewards, statistics, batch or statistics, chosen)]


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


def test_without_a_scale_advantages_are_differences_to_the_mean() -> None:
    group = make_group([0, 0, 0, 0], [1, 0, 0, 0])
    assert of_last(group, advantage_scale="none") == pytest.approx([0.875] + [-0.125] * 3)
    assert of_last(make_group([30, -10]), advantage_scale="none") == pytest.approx([20, -20])  # no bound


def test_by_the_batch_the_standard_deviation_is_that_of_all_groups() -> None:
    # The batch: 0, 0, 0, 0, 1, 0, 0, 0 and 1, 1, 1, 0. Mean 1/3, squared deviations 4 * 4/9 + 8 * 1/9 = 8/3, std
    # sqrt((8/3) / 11) = 0.492366. The groups have the means 1/8 and 3/4.
    hard, easy = make_group([0, 0, 0, 0], [1, 0, 0, 0]), make_group([1, 1, 1, 0])
    batch = statistics_of(hard).merge(statistics_of(easy))
    assert batch.std == pytest.approx(0.492366, abs=1e-6)
    of_hard, of_easy = (of_last(group, batch, advantage_scale="batch") for group in (hard, easy))
    assert of_hard == pytest.approx([0.875 / 0.492466] + [-0.125 / 0.492466] * 3, abs=1e-6)
    assert of_easy == pytest.approx([0.25 / 0.492466] * 3 + [-0.75 / 0.492466], abs=1e-6)


def test_by_the_mean_advantages_are_those_of_maxrl() -> None:
    # One success of eight: (1 - 1/8) / (1/8) = 7 and -1. Three of four: (1/4) / (3/4) and -1.
    assert of_last(make_group([0, 0, 0, 0], [1, 0, 0, 0]), advantage_scale="mean") == pytest.approx([7, -1, -1, -1])
    assert of_last(make_group([1, 1, 1, 0]), advantage_scale="mean") == pytest.approx([1 / 3] * 3 + [-1])
    assert of_last(make_group([2.0, 1.0, 1.0, 0.0]), advantage_scale="mean") == pytest.approx([1, 0, 0, -1])


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.5, 0.0), (-3.0, 0.1), (0.0, 2.0)])
def test_by_the_mean_rewards_below_0_have_the_advantages_of_0_and_1(low: float, high: float) -> None:
    found = of_last(make_group([low] * 4, [high, low, low, low]), advantage_scale="mean")
    assert found == pytest.approx([7, -1, -1, -1], rel=1e-5)


@pytest.mark.parametrize("reward", [-0.1, -7.3, -1e-9, 0.1])
def test_by_the_mean_equal_rewards_have_no_advantage(reward: float) -> None:
    assert of_last(make_group([reward] * 3, [reward] * 7), advantage_scale="mean") == [0.0] * 7


def test_by_the_mean_a_success_among_many_attempts_is_not_clipped() -> None:
    rows = [[0.0] * 8] * 16 + [[1.0] + [0.0] * 7]
    assert of_last(make_group(*rows), advantage_scale="mean") == pytest.approx([135] + [-1] * 7)
    assert of_last(make_group(*rows), advantage_scale="mean", advantage_bound=5)[0] == 5


@pytest.mark.parametrize("scale", ["std", "none", "batch", "mean"])
@pytest.mark.parametrize("reward", [0.0, 0.1])
def test_equal_rewards_have_no_advantage(scale: str, reward: float) -> None:
    assert of_last(make_group([reward] * 4, [reward] * 4), advantage_scale=scale) == [0.0] * 4


@pytest.mark.parametrize("scale", ["std", "batch", "mean"])
def test_rewards_beyond_statistics_without_a_scale_have_no_advantage(scale: str) -> None:
    """Failures before a last attempt of equal rewards, with its statistics alone: they would reach the bound."""
    chosen = AlgorithmSettings.model_validate({"advantage_scale": scale})
    equal = RewardStatistics.of([0.0] * 4 if scale == "mean" else [1.0] * 4)
    assert advantages(np.array([0.0, 1.0, 2.0], np.float32), equal, equal, chosen).tolist() == [0.0] * 3


def test_advantages_are_clipped_on_both_sides() -> None:
    statistics = RewardStatistics(count=1000, mean=0.0, m2=1e-30)
    rewards = np.array([1.0, -1.0, 2e-4], np.float32)
    settings = AlgorithmSettings.model_validate({**CLASSIC, "advantage_bound": 3.0})
    assert advantages(rewards, statistics, statistics, settings).tolist() == pytest.approx([3.0, -3.0, 2.0])


def test_only_advantages_divided_by_a_standard_deviation_are_bounded_by_default() -> None:
    statistics, rewards = RewardStatistics(count=8, mean=1e-6, m2=1e-30), np.array([100.0], np.float32)
    found = {
        scale: float(
            advantages(rewards, statistics, statistics, AlgorithmSettings.model_validate({"advantage_scale": scale}))[0]
        )
        for scale in ("std", "batch", "none", "mean")
    }
    assert found == {"std": 10.0, "batch": 10.0, "none": pytest.approx(100.0), "mean": pytest.approx(1e8, rel=1e-6)}


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    expected = pytest.approx([0.5 / 1.5773503, -0.5 / 1.5773503] * 2)
    assert of_last(make_group([1, 0, 1, 0]), advantage_epsilon=1.0) == expected
    assert of_last(make_group([1, 0, 1, 0]), advantage_epsilon=1.0, advantage_scale="batch") == expected


@given(ATTEMPTS)
def test_advantages_equal_the_original_for_any_sequence_of_attempts(rows: list[list[float]]) -> None:
    assert of_last(make_group(*rows), advantage_bound=1e9) == pytest.approx(original(rows), rel=1e-6, abs=1e-6)
