"""The posterior of a success rate: its counts, mean and moments."""

from __future__ import annotations

import numpy as np
import pytest

from adagrpo_ray.algorithm.posterior import Posterior


def test_posterior_matches_numbers_by_hand() -> None:
    assert Posterior().mean == 0.5
    one = Posterior().after(1, 7, discount=0.5)
    assert one.mean == pytest.approx(2 / 10)
    two = one.after(4, 4, discount=0.5)
    assert (two.correct, two.wrong) == (4.5, 7.5)
    assert two.mean == pytest.approx(5.5 / 14)


def test_moments_match_numbers_by_hand() -> None:
    assert Posterior().expected(0, 0) == pytest.approx(1.0)
    assert Posterior().expected(1, 2) == pytest.approx(1 / 12)  # the integral of p (1 - p)^2 from 0 to 1
    assert Posterior(3.0, 1.0).expected(1, 0) == pytest.approx(Posterior(3.0, 1.0).mean)
    assert Posterior(3.0, 1.0).expected(1, 1) == pytest.approx(4 * 2 / (6 * 7))  # a b / ((a + b)(a + b + 1))


@pytest.mark.parametrize("posterior", [Posterior(), Posterior(0.7, 11.2), Posterior(40.0, 2.0)])
@pytest.mark.parametrize(("correct", "wrong"), [(2, 10), (9, 3), (33, 3)])
def test_moments_are_those_of_the_density(posterior: Posterior, correct: int, wrong: int) -> None:
    p = (np.arange(200_000) + 0.5) / 200_000
    density = p**posterior.correct * (1 - p) ** posterior.wrong
    integral = (p**correct * (1 - p) ** wrong * density).sum() / density.sum()
    assert posterior.expected(correct, wrong) == pytest.approx(float(integral), rel=1e-4)


def test_a_limited_posterior_keeps_its_mean_and_is_less_certain() -> None:
    known = Posterior(30.0, 170.0)
    limited = known.limited(8)
    assert limited.mean == pytest.approx(known.mean)
    assert limited.correct + limited.wrong == pytest.approx(8)
    assert limited.expected(2, 0) - limited.mean**2 > 10 * (known.expected(2, 0) - known.mean**2)  # its variance
    assert Posterior(3.0, 5.0).limited(8) == Posterior(3.0, 5.0)


def test_a_limited_posterior_of_failures_alone_has_moments() -> None:
    limited = Posterior(0.0, 1000.0).limited(2)
    assert limited.mean == pytest.approx(1 / 1002)
    assert 0 < limited.expected(2, 4) < limited.mean
