"""The three methods, and the penalty that DAPO adds."""

from __future__ import annotations

import math

import pytest

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.algorithm.overlong import overlong_penalty
from adagrpo_ray.config.algorithm import AlgorithmSettings
from tests.support.builders import make_group

TRIGGERS = [{"from_step": 1, "rungs": [{"temperature": 1.2}]}]


def settings(name: str, **rest: object) -> AlgorithmSettings:
    return AlgorithmSettings.model_validate({"name": name, "triggers": TRIGGERS, **rest})


@pytest.mark.parametrize(
    ("name", "resamples", "refill", "drops", "flat_ready", "failed_ready"),
    [
        ("grpo", 0, False, False, True, True),
        ("dapo", 0, True, True, False, False),
        ("adagrpo", 1, False, False, True, False),
    ],
)
def test_methods_differ_in_ladder_refill_and_criterion(
    name: str, resamples: int, refill: bool, drops: bool, flat_ready: bool, failed_ready: bool
) -> None:
    method = make_method(settings(name), ["exact"])
    assert method.ladder.height == resamples
    assert (method.refill, method.drop_exhausted) == (refill, drops)
    assert method.criterion(make_group([1, 1])) is flat_ready
    assert method.criterion(make_group([0, 0])) is failed_ready
    assert method.criterion(make_group([0, 1])) is True


@pytest.mark.parametrize(
    ("name", "passes", "parts", "selection"),
    [("grpo", 1, 1, "last"), ("dapo", 1, 1, "last"), ("adagrpo", 2, 4, "max_variance")],
)
def test_methods_have_their_own_defaults(name: str, passes: int, parts: int, selection: str) -> None:
    nulls = {"num_iterations": None, "num_mini_batches": None, "train_on": None}
    for chosen in (settings(name), settings(name, **nulls)):
        assert (chosen.passes_per_batch, chosen.updates_per_pass, chosen.selection) == (passes, parts, selection)
        assert chosen.updates_per_batch == passes * parts
    set_to = settings(name, num_iterations=3, num_mini_batches=2, train_on="all")
    assert (set_to.updates_per_batch, set_to.selection) == (6, "all")


@pytest.mark.parametrize(("groups", "parts"), [(0, 1), (1, 1), (3, 1), (4, 2), (7, 3), (8, 4), (64, 4)])
def test_adagrpo_has_a_mini_batch_for_every_two_groups_with_an_advantage(groups: int, parts: int) -> None:
    assert settings("adagrpo", prompts_per_step=16).mini_batches_of(groups) == parts
    assert settings("adagrpo", prompts_per_step=16, num_mini_batches=3).mini_batches_of(groups) == 3
    assert settings("grpo", prompts_per_step=16).mini_batches_of(groups) == 1
    of_largest_step = settings("adagrpo", prompts_per_step=max(1, groups))
    assert of_largest_step.updates_per_pass == of_largest_step.mini_batches_of(groups + 8) == parts


@pytest.mark.parametrize(("prompts", "completions", "passes"), [(100, 99, 1), (100, 100, 2), (0, 0, 2)])
def test_adagrpo_makes_a_single_pass_if_prompts_have_more_tokens(prompts: int, completions: int, passes: int) -> None:
    assert settings("adagrpo").passes_over(prompts, completions) == passes
    assert settings("adagrpo", num_iterations=2).passes_over(prompts, completions) == 2
    assert settings("grpo").passes_over(prompts, completions) == 1


@pytest.mark.parametrize("scale", ["std", "batch", "none", "mean"])
def test_bound_of_advantages_follows_their_scale(scale: str) -> None:
    of_scale = 10.0 if scale in ("std", "batch") else math.inf
    assert settings("adagrpo", advantage_scale=scale).largest_advantage == of_scale
    assert settings("adagrpo", advantage_scale=scale, advantage_bound=2.0).largest_advantage == 2.0


@pytest.mark.parametrize(("group_size", "half"), [(2, 2), (3, 2), (4, 2), (5, 3), (8, 4), (9, 5)])
def test_max_variance_trains_on_half_of_a_group_by_default(group_size: int, half: int) -> None:
    for chosen in (settings("adagrpo", group_size=group_size), settings("grpo", train_on="max_variance")):
        assert chosen.selection == "max_variance"
    assert settings("adagrpo", group_size=group_size).trained_at_most == half
    assert settings("grpo", group_size=group_size, train_on="max_variance").trained_at_most == half
    assert settings("adagrpo", group_size=group_size, train_size=7).trained_at_most == 7


@pytest.mark.parametrize("train_on", ["last", "all", "balanced"])
def test_other_selections_have_no_size_of_their_own(train_on: str) -> None:
    assert settings("adagrpo", train_on=train_on).trained_at_most is None


@pytest.mark.parametrize(("name", "allocates"), [("grpo", False), ("dapo", False), ("adagrpo", True)])
def test_only_adagrpo_allocates(name: str, allocates: bool) -> None:
    assert (make_method(settings(name), ["exact"]).allocation is not None) is allocates
    assert make_method(settings(name, allocation={"enabled": False}), ["exact"]).allocation is None


def test_prompts_are_solved_from_four_of_five_on_and_not_replaced_by_default() -> None:
    allocation = make_method(settings("adagrpo"), ["exact"]).allocation
    assert allocation is not None
    assert (allocation.solved_above, allocation.replace_left_out) == (0.8, False)


def test_on_exhausted_drop_drops_exhausted_groups() -> None:
    assert make_method(settings("adagrpo", on_exhausted="drop"), ["exact"]).drop_exhausted


def test_overlong_penalty() -> None:
    penalty = overlong_penalty([10, 80, 85, 90, 100], max_new_tokens=100, buffer=20)
    assert penalty.tolist() == pytest.approx([0, 0, -0.25, -0.5, -1])
