"""RewardStatistics: numbers worked out by hand, and exact merging."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.algorithm.statistics import RewardStatistics, statistics_of
from tests.support.builders import make_group

REWARDS = st.floats(-20, 20, width=32)


def merged(parts: list[list[float]]) -> RewardStatistics:
    total = RewardStatistics()
    for part in parts:
        total = total.merge(RewardStatistics.of(part))
    return total


def test_statistics_match_numbers_by_hand() -> None:
    # Mean 20/4 = 5; deviations -3, -1, 0, 4 with squares 9 + 1 + 0 + 16 = 26; std sqrt(26/3).
    known = RewardStatistics.of([2, 4, 5, 9])
    assert (known.count, known.mean, known.m2) == (4, 5.0, 26.0)
    assert known.std == pytest.approx(2.943920288775949, rel=1e-15)


def test_merge_matches_numbers_by_hand() -> None:
    # [2, 4] has mean 3 and m2 2; [5, 9] mean 7 and m2 8; between them (7-3)^2 * 2*2/4 = 16.
    total = RewardStatistics(2, 3.0, 2.0).merge(RewardStatistics(2, 7.0, 8.0))
    assert (total.count, total.mean, total.m2) == (4, 5.0, 26.0)


@pytest.mark.parametrize("rewards", [[], [7.5]])
def test_fewer_than_two_rewards_have_std_0(rewards: list[float]) -> None:
    assert RewardStatistics.of(rewards).std == 0.0


def test_merging_with_empty_statistics_changes_nothing() -> None:
    some, nothing = RewardStatistics.of([1, 2, 4]), RewardStatistics()
    assert some.merge(nothing) == some == nothing.merge(some)
    assert nothing.merge(nothing) == nothing


@given(REWARDS, st.lists(st.integers(1, 64), min_size=1, max_size=17))
def test_equal_rewards_have_std_exactly_0_after_any_merges(reward: float, sizes: list[int]) -> None:
    # Rewards are float32; a rounding error must not look like a learning signal.
    assert merged([[reward] * size for size in sizes]).std == 0.0


@pytest.mark.parametrize("reward", [0.1, 0.7, -0.1])
def test_equal_rewards_that_are_no_float32_have_std_0(reward: float) -> None:
    """Three times 0.1 is rounded up, and so is a third of it."""
    found = RewardStatistics.of([reward] * 3)
    assert (found.mean, found.std, found.lowest) == (reward, 0.0, reward)


@given(st.data(), st.lists(st.lists(REWARDS, max_size=8), min_size=1, max_size=6))
def test_any_partition_in_any_order_gives_the_same_statistics(data: st.DataObject, parts: list[list[float]]) -> None:
    at_once = RewardStatistics.of([reward for part in parts for reward in part])
    total = merged(data.draw(st.permutations(parts)))
    assert total.count == at_once.count
    assert total.mean == pytest.approx(at_once.mean, rel=1e-9, abs=1e-12)
    assert total.m2 == pytest.approx(at_once.m2, rel=1e-9, abs=1e-12)


@given(st.lists(REWARDS, max_size=5), st.lists(REWARDS, max_size=5), st.lists(REWARDS, max_size=5))
def test_merging_is_associative(a: list[float], b: list[float], c: list[float]) -> None:
    first, second, third = map(RewardStatistics.of, (a, b, c))
    left, right = first.merge(second).merge(third), first.merge(second.merge(third))
    assert left.std == pytest.approx(right.std, rel=1e-9, abs=1e-12)


@given(st.lists(REWARDS, min_size=2, max_size=30))
def test_std_is_the_sample_standard_deviation(rewards: list[float]) -> None:
    assert RewardStatistics.of(rewards).std == pytest.approx(statistics.stdev(rewards), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"a reward is {bad}"):
        RewardStatistics.of([1.0, bad])


def test_statistics_of_a_group_cover_all_attempts() -> None:
    group = make_group([0, 0, 0, 0], [1, 0, 0, 0])
    assert (statistics_of(group).count, statistics_of(group).mean) == (8, 0.125)
    assert group.last.rewards.tolist() == [1, 0, 0, 0]
    assert group.generated_tokens == 16
