"""The share of a prompt in an epoch, from the posterior of its success rate."""

from __future__ import annotations

import pytest

from adagrpo_ray.algorithm.allocation import Share, allocate, left_out
from adagrpo_ray.algorithm.posterior import Posterior
from adagrpo_ray.config.group_allocation import AllocationSettings

SETTINGS = AllocationSettings(enabled=True, min_group=2, max_group=16, informative=0.9, hard_below=0.05)
HOPELESS = SETTINGS.model_copy(update={"hopeless_below": 0.1})


def posterior(mean: float, count: float = 1000.0) -> Posterior:
    correct = mean * (count + 2) - 1
    return Posterior(correct, count - correct)


def shares(*posteriors: Posterior | None, settings: AllocationSettings = SETTINGS, total: int = 0) -> list[Share]:
    return allocate(posteriors, settings, default=8, total=total)


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
    assert shares(posterior(mean)) == [Share(size, 0)]


def test_a_new_prompt_gets_the_default_size() -> None:
    assert shares(None) == [Share(8, 0)]


def test_hard_prompts_start_on_the_first_rung() -> None:
    assert shares(posterior(0.02)) == [Share(16, 1)]


def test_by_value_prompts_share_a_total() -> None:
    by_value = SETTINGS.model_copy(update={"rule": "value"})
    solved, new, hard = shares(posterior(0.99), None, posterior(0.04), settings=by_value, total=24)
    assert solved == Share(2, 0)
    assert (hard.start, new.start) == (1, 0)
    assert solved.size + new.size + hard.size == 24
    assert shares(None, None, settings=by_value, total=16) == [Share(8, 0)] * 2


@pytest.mark.parametrize("mean", [0.01, 0.99])
def test_each_solved_or_hopeless_prompt_is_sampled_in_one_of_four_epochs(mean: float) -> None:
    for name in "abcdefgh":
        out = [left_out(posterior(mean), name, epoch, 7, HOPELESS) for epoch in range(12)]
        assert [out[epoch : epoch + 4].count(False) for epoch in range(9)] == [1] * 9


def test_a_share_of_the_solved_prompts_is_sampled_in_every_epoch_from_the_first_on() -> None:
    for epoch in range(4):
        sampled = sum(not left_out(posterior(0.99), str(n), epoch, 7, SETTINGS) for n in range(1000))
        assert 200 < sampled < 300


def test_turns_depend_on_the_seed_and_not_on_the_process() -> None:
    # The SHA-256 of "7/a" begins with 8 bytes that are 2 modulo 4, that of "9/a" with 8 that are 1.
    turns = [[left_out(posterior(0.99), "a", epoch, seed, SETTINGS) for epoch in range(4)] for seed in (7, 9)]
    assert [turn.index(False) for turn in turns] == [2, 3]


@pytest.mark.parametrize("mean", [0.02, 0.5, 0.79])
def test_other_prompts_are_always_sampled(mean: float) -> None:
    assert not any(left_out(posterior(mean), "a", epoch, 7, SETTINGS) for epoch in range(8))
    assert not any(left_out(None, "a", epoch, 7, HOPELESS) for epoch in range(8))


def test_default_sizes_are_half_of_the_group_and_all_of_it() -> None:
    assert AllocationSettings().sizes(8) == (4, 8)
    assert AllocationSettings().sizes(2) == (2, 2)
    assert AllocationSettings(min_group=3, max_group=12).sizes(8) == (3, 12)


def test_default_sizes_by_value_reach_four_groups() -> None:
    assert AllocationSettings(rule="value").sizes(8) == (2, 32)
    assert AllocationSettings(rule="value", min_group=4, max_group=16).sizes(8) == (4, 16)
    assert AllocationSettings(rule="value").sizes(16384) == (2, 16384)
