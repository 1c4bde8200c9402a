"""Whether a rung pays: Thompson sampling between the rung and the base parameters."""

from __future__ import annotations

import pytest

from adagrpo_ray.algorithm.rungs import BASE, ClassRungs, RungResults, pays


def used(results: ClassRungs, rung: int = 0) -> float:
    """The share of groups that are sampled on the rung."""
    return sum(pays(results, rung, str(seed)) for seed in range(2000)) / 2000


def test_results_are_discounted_sums() -> None:
    results = RungResults().after([(1, 8), (0, 4)], 0.5)
    assert results == RungResults(1.0, 11.0)
    assert results.after([(2, 4)], 0.5) == RungResults(2.5, 7.5)


@pytest.mark.parametrize(
    ("rung", "base", "share"),
    [
        (RungResults(), RungResults(), 0.5),
        (RungResults(0, 24), RungResults(4, 20), 0.02),  # the worked example
        (RungResults(4, 20), RungResults(0, 24), 0.98),
        (RungResults(0, 24), RungResults(0, 24), 0.5),
        (RungResults(), RungResults(0, 24), 25 / 26),  # 1 minus the mean of Beta(1, 25)
    ],
)
def test_a_rung_is_used_as_often_as_it_is_likely_to_be_better(
    rung: RungResults, base: RungResults, share: float
) -> None:
    assert used({0: rung, BASE: base}) == pytest.approx(share, abs=0.03)


def test_rungs_have_results_of_their_own() -> None:
    results = {BASE: RungResults(8, 16), 0: RungResults(0, 80), 1: RungResults(60, 20)}
    assert (used(results, 0), used(results, 1)) == pytest.approx((0.0, 1.0), abs=0.01)


def test_the_seed_decides() -> None:
    found = [pays({}, 0, str(seed)) for seed in range(50)]
    assert found == [pays({}, 0, str(seed)) for seed in range(50)]
    assert len(set(found)) == 2
