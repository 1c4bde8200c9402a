"""pass@k against enumeration, and intervals against known numbers."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from adagrpo_ray.algorithm.estimators import bootstrap_means, pass_at_k, powers_of_two, wilson


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_choices_with_a_correct_completion(n: int) -> None:
    for correct, k in product(range(n + 1), range(1, n + 1)):
        marks = [True] * correct + [False] * (n - correct)
        choices = [any(choice) for choice in combinations(marks, k)]
        assert pass_at_k(n, correct, k) == pytest.approx(sum(choices) / len(choices), abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of n = 5 draws at a success rate of 0.3, its expectation for k = 2 is 1 - 0.7^2."""
    p, n, k = 0.3, 5, 2
    outcomes = [(sum(marks), np.prod([p if m else 1 - p for m in marks])) for marks in product((0, 1), repeat=n)]
    assert sum(weight * pass_at_k(n, correct, k) for correct, weight in outcomes) == pytest.approx(1 - (1 - p) ** k)


def test_pass_at_k_of_many_completions_is_exact() -> None:
    assert pass_at_k(4096, 1, 2048) == 0.5
    assert pass_at_k(4096, 4096, 1) == 1.0
    assert pass_at_k(4096, 0, 4096) == 0.0


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_impossible_counts(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {correct} correct completions in {n}"):
        pass_at_k(n, correct, k)


def test_powers_of_two_end_with_n() -> None:
    assert [powers_of_two(n) for n in (1, 2, 4, 6)] == [(1,), (1, 2), (1, 2, 4), (1, 2, 4, 6)]


def test_wilson_interval_matches_published_numbers() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson's own formula, worked out
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    low, high = wilson(10, 10)
    assert (1 - high, 1 - low) == pytest.approx(wilson(0, 10))


def test_bootstrap_means_are_those_of_all_draws_with_replacement() -> None:
    values = np.array([[0.0], [0.5], [1.0]])
    expected = [float(np.mean(choice)) for choice in product(values[:, 0], repeat=3)]
    drawn = bootstrap_means(values, 20_000, seed=1)[:, 0]
    assert drawn.mean() == pytest.approx(np.mean(expected), abs=0.01)
    assert drawn.std() == pytest.approx(np.std(expected), abs=0.01)
    assert set(np.round(drawn, 6)) == set(np.round(expected, 6))


def test_bootstrap_is_reproducible_and_pairs_columns() -> None:
    values = np.random.default_rng(0).random((50, 1))
    drawn = bootstrap_means(np.concatenate([values, values + 0.25], axis=1), 200, seed=0)
    assert drawn.shape == (200, 2)
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 0.25)
    assert drawn[:, 0].std() > 0
    np.testing.assert_allclose(drawn[:, :1], bootstrap_means(values, 200, seed=0))
    assert not np.allclose(drawn[:, :1], bootstrap_means(values, 200, seed=1))
