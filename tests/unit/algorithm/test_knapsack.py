"""The division of a total of completions by value: gains by hand, and the largest sum of values by brute force."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.algorithm.knapsack import gain, sizes
from adagrpo_ray.algorithm.posterior import Posterior

POSTERIORS = st.builds(Posterior, st.floats(0, 30), st.floats(0, 30))


def known(rate: float) -> Posterior:
    """A posterior that is nearly certain of a success rate."""
    return Posterior(rate * 1e7, (1 - rate) * 1e7)


def value(posterior: Posterior, size: int) -> float:
    """E[(1 - p^n - (1 - p)^n) p (1 - p)^2] for n = size, term by term."""
    return posterior.expected(1, 2) - posterior.expected(1 + size, 2) - posterior.expected(1, 2 + size)


def worth(posteriors: Sequence[Posterior], found: Sequence[int]) -> float:
    return sum(value(posterior, size) for posterior, size in zip(posteriors, found, strict=True))


def test_gains_match_numbers_by_hand() -> None:
    # Beta(1, 1) has E[p^a (1 - p)^b] = a! b! / (a + b + 1)!, so 2! 10! / 13! + 9! 3! / 13!.
    assert gain(Posterior(), 8) == pytest.approx(2 / 1716 + 6 / 17160)
    assert gain(known(0.5), 8) == pytest.approx(2 / 2**12, rel=1e-3)
    assert gain(known(0.1), 8) == pytest.approx(0.1**2 * 0.9**10 + 0.1**9 * 0.9**3, rel=1e-3)


@given(POSTERIORS, st.integers(2, 40))
def test_the_gain_is_the_difference_of_values_and_falls_with_the_size(posterior: Posterior, size: int) -> None:
    assert gain(posterior, size) == pytest.approx(value(posterior, size + 1) - value(posterior, size), abs=1e-12)
    assert gain(posterior, size + 1) < gain(posterior, size)


@given(
    posteriors=st.lists(POSTERIORS, min_size=1, max_size=4),
    total=st.integers(0, 30),
    fewest=st.integers(2, 4),
    room=st.integers(0, 5),
)
def test_no_other_division_has_a_larger_value(posteriors: list[Posterior], total: int, fewest: int, room: int) -> None:
    most, count = fewest + room, len(posteriors)
    found = sizes(posteriors, total, fewest, most)
    spent = min(max(total, fewest * count), most * count)
    assert sum(found) == spent
    assert all(fewest <= size <= most for size in found)
    others = (other for other in product(range(fewest, most + 1), repeat=count) if sum(other) == spent)
    assert worth(posteriors, found) >= max(worth(posteriors, other) for other in others) - 1e-12


def test_prompts_without_results_share_evenly() -> None:
    assert sizes([Posterior()] * 8, 64, 2, 32) == [8] * 8
    assert sizes([Posterior()] * 3, 8, 2, 32) == [3, 3, 2]  # the first ones get the rest


def test_hard_prompts_get_more_and_solved_ones_give_up_their_share() -> None:
    solved, even, hard = sizes([known(0.99), known(0.5), known(0.08)], 24, 2, 32)
    assert (solved, solved + even + hard) == (2, 24)
    assert hard > even > solved


def test_an_unknown_rate_gets_more_than_a_known_rate_of_one_half() -> None:
    unknown, one_half = sizes([Posterior(), known(0.5)], 16, 2, 32)
    assert unknown > one_half


def test_a_hopeless_prompt_gives_up_its_share_with_the_number_of_its_failures() -> None:
    shares = [sizes([Posterior(0.0, wrong), Posterior(4.0, 12.0)], 24, 2, 32)[0] for wrong in (4.0, 32.0, 256.0)]
    assert shares[0] > shares[1] > shares[2] == 2
