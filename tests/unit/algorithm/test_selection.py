"""The selection of completions to train on, against brute force and with ties."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.algorithm.selection import balanced, max_variance

REWARDS = st.one_of(
    st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=10),
    st.lists(st.sampled_from([-2.0, 0.0, 0.5, 5.0]), min_size=1, max_size=10),
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=9),
)


@given(REWARDS, st.integers(2, 10))
def test_no_other_selection_has_a_larger_variance(rewards: list[float], size: int) -> None:
    places = max_variance(rewards, size)
    count = min(size, len(rewards))
    assert places == sorted(set(places))
    assert len(places) == count
    largest = max(np.var(chosen) for chosen in combinations(rewards, count))
    assert np.var([rewards[place] for place in places]) == pytest.approx(largest, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("rewards", "size", "places"),
    [
        ([0, 0, 0, 1, 0, 1], 4, [0, 1, 3, 5]),  # half and half
        ([0, 0, 0, 0, 0, 1], 4, [0, 1, 2, 5]),  # as many as there are
        ([1, 1, 1, 1, 1, 0], 4, [0, 1, 2, 5]),
        ([0, 1, 0, 1, 0, 1], 3, [0, 1, 3]),  # two successes and a failure vary as much as one and two
        ([1, 1, 1, 1], 2, [0, 1]),  # the first ones, as all are equal
        ([3, 0, 1, 5, 2], 2, [1, 3]),  # the extremes
        ([10, 0, 1, 2], 3, [0, 1, 2]),  # two low ones: 0, 1, 10 vary more than 0, 2, 10
        ([0, 1], 5, [0, 1]),  # all
    ],
)
def test_selections_match_choices_by_hand(rewards: list[float], size: int, places: list[int]) -> None:
    assert max_variance(rewards, size) == places


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    assert max_variance([1e8, 1e8 + 1, 1e8, 1e8 + 1, 1e8], 2) == [0, 1]


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=5, max_size=12), st.integers(2, 4))
def test_of_equal_rewards_the_first_ones_are_selected(rewards: list[float], size: int) -> None:
    places = max_variance(rewards, size)
    for kind in (0.0, 1.0):
        all_of_kind = [place for place, reward in enumerate(rewards) if reward == kind]
        selected = [place for place in places if rewards[place] == kind]
        assert selected == all_of_kind[: len(selected)]


@pytest.mark.parametrize(
    ("correct", "size", "places"),
    [
        ([False, True, True, True, False, False], 4, [1, 2, 0, 4]),
        ([False, False, False, True], 2, [3, 0]),
        ([True, True, True, False], 4, [0, 1, 2, 3]),
        ([False] * 4, 2, [0, 1]),
        ([True, False], 6, [0, 1]),
    ],
)
def test_balanced_selects_correct_ones_up_to_half(correct: list[bool], size: int, places: list[int]) -> None:
    assert balanced(correct, size) == places
