"""The posterior of a success rate: its counts, mean and moments."""

from __future__ import annotations

import numpy as np
import pytest

from adagrpo_ray.algorithm.posterior import ClassResults, Posterior, PromptResults


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


def of_class(*counts: tuple[int, int], steps: int = 1, discount: float = 0.7) -> ClassResults:
    """A class after `steps` steps with (correct ones, completions) of each of its prompts."""
    results = ClassResults()
    for _ in range(steps):
        results = results.after(counts, discount)
    return results


ALIKE = of_class((4, 8), (3, 8), (5, 8), steps=20)  # prompts of a success rate of one half each
SPLIT = of_class((0, 8), (8, 8), steps=20)  # half of the prompts are solved, and half hopeless
SOLVED, HOPELESS = of_class((8, 8), (8, 8), steps=20), of_class((0, 8), (0, 8), steps=20)


def test_class_results_match_numbers_by_hand() -> None:
    once = of_class((2, 4), (0, 8))  # shares of 1/2 and 0; of correct pairs 2 / 12 and 0
    assert once == ClassResults(2, 12, 0.5, 1, 1 / 12 - 0, 0.25 - 0)
    assert once.rate == pytest.approx((1 + 0.25 * 12) / 14)  # the prompts count alike, whatever their sizes
    assert once.correlation == pytest.approx((1 / 3 + 1 / 3) / 2)
    twice = once.after([(3, 4)], discount=0.5)  # one prompt is compared with none
    assert twice == ClassResults(2, 10, 0.25 + 0.75, 0.5, 0.5 / 12, 0.125)
    assert twice.correlation == pytest.approx((0.5 / 3 + 1 / 3) / 1.5)


def test_a_class_without_results_has_a_uniform_prior() -> None:
    assert ClassResults().prior(8) == Posterior()
    assert PromptResults(3, 5, 0.5).posterior(ClassResults().prior(8), ClassResults().rate) == Posterior(3, 5)


def test_correlation_is_that_of_the_success_rates_of_the_prompts() -> None:
    """Success rates drawn from Beta(2, 6), whose completions have the correlation 1 / 9, in steps of three prompts."""
    draws = np.random.default_rng(0)
    results = ClassResults()
    for _ in range(8000):
        results = results.after([(int(c), 8) for c in draws.binomial(8, draws.beta(2, 6, 3))], 1.0)
    assert results.correlation == pytest.approx(1 / 9, abs=0.01)
    assert results.prior(100).correct == pytest.approx(1, abs=0.2)
    assert results.prior(100).wrong == pytest.approx(5, abs=0.6)


def test_progress_of_a_whole_class_is_no_difference_between_its_prompts() -> None:
    results = ClassResults()
    for correct in range(9):
        results = results.after([(correct, 8)] * 3, 0.9)
    assert results.correlation < 0.05


def test_the_prior_counts_as_few_completions_if_the_prompts_of_a_class_differ() -> None:
    assert [results.prior(8).mean for results in (ALIKE, SPLIT)] == pytest.approx([0.5, 0.5])
    alike, split = (2 + prior.correct + prior.wrong for prior in (ALIKE.prior(8), SPLIT.prior(8)))
    assert alike == 2 + 8  # the most
    assert split < 0.2
    assert 0 < SPLIT.prior(8).expected(2, 4) < 0.5  # it still has moments


def test_a_class_without_successes_has_a_prior_with_moments() -> None:
    prior = HOPELESS.prior(8)
    assert prior.mean == pytest.approx(HOPELESS.rate)
    assert 0 < prior.expected(2, 4) < prior.mean < 0.02


def test_results_of_a_prompt_match_numbers_by_hand() -> None:
    one = PromptResults().after(1, 7, 0.5, class_rate=0.3)
    assert one == PromptResults(1, 7, 0.3)
    two = one.after(4, 4, 0.5, class_rate=0.5)  # by then the class has moved by 0.2, so 0.64 of them count
    assert (two.correct, two.wrong, two.class_rate) == (pytest.approx(4.32), pytest.approx(6.24), 0.5)
    commit = two.after(3, 1, 1.0, class_rate=0.5)
    assert (commit.correct, commit.wrong) == (pytest.approx(7.32), pytest.approx(7.24))


def test_a_failure_before_its_class_was_solved_says_little() -> None:
    old, new = (PromptResults(0, 8, rate) for rate in (HOPELESS.rate, SOLVED.rate))
    assert old.posterior(SOLVED.prior(8), SOLVED.rate).mean > 0.95
    assert new.posterior(SOLVED.prior(8), SOLVED.rate).mean < 0.6


def test_success_in_a_solved_class_does_not_lower_the_expectation() -> None:
    assert PromptResults(8, 0, SOLVED.rate).posterior(SOLVED.prior(8), SOLVED.rate).mean > SOLVED.prior(8).mean > 0.95


def test_one_epoch_shows_which_prompts_are_solved_in_a_class_of_solved_and_hopeless_ones() -> None:
    rate = SPLIT.rate
    assert PromptResults(8, 0, rate).posterior(SPLIT.prior(8), SPLIT.rate).mean > 0.95
    assert PromptResults(0, 8, rate).posterior(SPLIT.prior(8), SPLIT.rate).mean < 0.05
    assert PromptResults(8, 0, rate).posterior(ALIKE.prior(8), ALIKE.rate).mean < 0.8
