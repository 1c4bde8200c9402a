"""The posterior of a prompt's success rate, and the decisions from it."""

from __future__ import annotations

import pytest

from adagrpo_ray.algorithm.allocation import Posterior, Share, allocate
from adagrpo_ray.config.algorithm import AllocationSettings

SETTINGS = AllocationSettings(enabled=True, min_group=2, max_group=16, informative=0.9, hard_below=0.05)


def posterior(mean: float, count: float = 1000.0) -> Posterior:
    correct = mean * (count + 2) - 1
    return Posterior(correct, count - correct)


def test_posterior_matches_numbers_by_hand() -> None:
    assert Posterior().mean == 0.5
    one = Posterior().after(1, 7, discount=0.5)
    assert one.mean == pytest.approx(2 / 10)
    two = one.after(4, 4, discount=0.5)
    assert (two.correct, two.wrong) == (4.5, 7.5)
    assert two.mean == pytest.approx(5.5 / 14)


@pytest.mark.parametrize(
    ("mean", "size"),
    [
        (0.5, 5),  # 1 - 2 x 0.5^4 = 0.875, 1 - 2 x 0.5^5 = 0.9375
        (0.3, 7),  # 1 - 0.3^7 - 0.7^7 = 0.917; with 6 it is 0.882
        (0.7, 7),
        (0.1, 16),  # would want 22
        (0.9, 16),
    ],
)
def test_group_size_depends_on_the_success_rate(mean: float, size: int) -> None:
    assert allocate(posterior(mean), 1, SETTINGS, default=8) == Share(size, 0)


def test_a_new_prompt_gets_the_default_size() -> None:
    assert allocate(None, 0, SETTINGS, default=8) == Share(8, 0)


def test_hard_prompts_start_on_the_first_rung() -> None:
    assert allocate(posterior(0.02), 1, SETTINGS, default=8) == Share(16, 1)


def test_solved_prompts_are_sampled_less_often() -> None:
    sampled = [allocate(posterior(0.99), epoch, SETTINGS, default=8) is not None for epoch in range(1, 9)]
    assert sampled == [False, False, False, True, False, False, False, True]


def test_default_sizes_are_half_of_the_group_and_all_of_it() -> None:
    assert AllocationSettings().sizes(8) == (4, 8)
    assert AllocationSettings().sizes(2) == (2, 2)
    assert AllocationSettings(min_group=3, max_group=12).sizes(8) == (3, 12)
