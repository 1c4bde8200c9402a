"""The three methods, and the penalty that DAPO adds."""

from __future__ import annotations

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
    ("name", "updates", "allocates"), [("grpo", 1, False), ("dapo", 1, False), ("adagrpo", 3, True)]
)
def test_methods_have_their_own_defaults(name: str, updates: int, allocates: bool) -> None:
    assert settings(name).updates_per_batch == updates
    assert settings(name, num_iterations=2).updates_per_batch == 2
    assert (make_method(settings(name), ["exact"]).allocation is not None) is allocates
    assert make_method(settings(name, allocation={"enabled": False}), ["exact"]).allocation is None


def test_on_exhausted_drop_drops_exhausted_groups() -> None:
    assert make_method(settings("adagrpo", on_exhausted="drop"), ["exact"]).drop_exhausted


def test_overlong_penalty() -> None:
    penalty = overlong_penalty([10, 80, 85, 90, 100], max_new_tokens=100, buffer=20)
    assert penalty.tolist() == pytest.approx([0, 0, -0.25, -0.5, -1])
