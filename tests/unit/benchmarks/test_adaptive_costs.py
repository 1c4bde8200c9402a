"""The costs of reaching an accuracy, and their ratios, compared with results computed by hand."""

from __future__ import annotations

from typing import Any

import adaptive_costs as costs
import pytest


def points(*accuracies: float, tokens: int = 100) -> list[Any]:
    """Points of a run that generates `tokens` between evaluations, trains on half of them, and takes 2 s."""
    return [
        costs.Point(step, step * tokens, step * tokens // 2, 2.0 * step, accuracy)
        for step, accuracy in enumerate(accuracies)
    ]


def test_accuracy_is_the_mean_of_the_last_three_evaluations() -> None:
    assert costs.smoothed(points(0.1, 0.3, 0.5, 0.7)) == pytest.approx([0.1, 0.2, 0.3, 0.5])


def test_cost_is_interpolated_between_evaluations() -> None:
    run = points(0.5, 0.9)  # smoothed: 0.5 and 0.7
    assert costs.cost_to(run, 0.6, "tokens") == pytest.approx(50)
    assert costs.cost_to(run, 0.65, "trained_tokens") == pytest.approx(37.5)
    assert costs.cost_to(run, 0.7, "seconds") == pytest.approx(2.0)


def test_one_lucky_evaluation_does_not_reach_the_target() -> None:
    assert costs.cost_to(points(0.1, 0.1, 0.9, 0.1, 0.1), 0.8, "tokens") is None


def test_first_crossing_counts() -> None:
    run = points(0.8, 0.8, 0.8, 0.2, 0.2, 0.8, 0.8, 0.8)
    assert costs.cost_to(run, 0.7, "tokens") == 0.0


def test_run_that_misses_the_target_counts_with_its_whole_cost() -> None:
    run = points(0.1, 0.2, 0.3)
    assert costs.cost_to(run, 0.8, "tokens") is None
    assert costs.cost_or_bound(run, 0.8, "tokens") == 200
    assert costs.cost_or_bound(run, 0.15, "tokens") == pytest.approx(100)


def test_ratio_of_equal_runs_is_one() -> None:
    runs = [points(0.1, 0.5, 0.9), points(0.1, 0.9, 0.9), points(0.1, 0.3, 0.9)]
    found = costs.ratio(runs, runs, 0.4, "tokens")
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_interval_is_paired_by_seed() -> None:
    """Every run takes half of the tokens of the base with the same seed, so that all draws have the same ratio."""
    base = [points(0.0, 0.8, tokens=tokens) for tokens in (100, 400, 1000)]
    own = [points(0.0, 0.8, tokens=tokens) for tokens in (50, 200, 500)]
    found = costs.ratio(own, base, 0.2, "tokens")
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.own_bounded, found.base_bounded) == (False, False)


def test_interval_of_unequal_seeds_contains_the_ratio() -> None:
    base = [points(0.0, 0.8, tokens=100) for _ in range(4)]
    own = [points(0.0, 0.8, tokens=tokens) for tokens in (50, 50, 100, 200)]
    found = costs.ratio(own, base, 0.4, "tokens")
    assert found.value == pytest.approx(1.0)
    assert 0.5 <= found.low < 1.0 < found.high <= 2.0
    assert found == costs.ratio(own, base, 0.4, "tokens")  # the draws are always the same


def test_ratio_of_runs_that_miss_the_target_is_marked_as_a_bound() -> None:
    reached, missed = points(0.1, 0.9, 0.9), points(0.1, 0.1, 0.1)
    found = costs.ratio([reached, missed], [reached, reached], 0.4, "tokens")
    assert (found.own_bounded, found.base_bounded) == (True, False)
    found = costs.ratio([reached, reached], [missed, reached], 0.4, "tokens")
    assert (found.own_bounded, found.base_bounded) == (False, True)


def test_only_seeds_of_both_are_compared() -> None:
    run = points(0.1, 0.9)
    assert costs.ratio([run], [run, points(0.1, 0.1)], 0.4, "tokens").base_bounded is False


def test_base_that_costs_nothing_has_no_ratio() -> None:
    assert costs.ratio([points(0.9, 0.9)], [points(0.9, 0.9)], 0.5, "tokens") is None
    assert costs.ratio([], [], 0.5, "tokens") is None
