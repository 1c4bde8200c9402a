"""From groups to training samples: advantages from merged statistics, and weights over the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.algorithm.advantage import advantages
from adagrpo_ray.algorithm.statistics import statistics_of
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.sampling.batch import training_samples
from adagrpo_ray.types import Group, TrainSample
from tests.support.builders import make_attempt, make_group, make_prompt

MIXED = make_attempt([1, 0, 0, 0], lengths=[1, 2, 3, 4])
FLAT = make_attempt([1, 1], lengths=[5, 5])


CLASSIC = {"train_on": "last", "advantage_scale": "std"}
"""The completions and the scale of GRPO and of the original."""


def settings(
    beta: float = 0.04, kind: str = "bnpo", loss: Mapping[str, object] = {}, **rest: object
) -> AlgorithmSettings:
    return AlgorithmSettings.model_validate({"loss": {"beta": beta, "kind": kind, **loss}, **CLASSIC, **rest})


def total_weight(samples: tuple[TrainSample, ...]) -> float:
    return float(sum(s.token_weights.astype(np.float64).sum() for s in samples))


def test_train_on_last_uses_the_statistics_of_all_attempts() -> None:
    samples = training_samples([make_group([0, 0, 0, 0], MIXED)], settings(), max_new_tokens=10)
    assert [len(s.token_ids) for s in samples] == [1, 2, 3, 4]
    assert [s.advantage for s in samples] == pytest.approx([2.474174] + [-0.353453] * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("train_on", "lengths"), [("last", [3, 4, 1, 2]), ("all", [3, 4, 1, 2, 5]), ("balanced", [4, 2, 3, 1])]
)
def test_a_pilot_and_its_commit_are_trained_on_as_one_attempt(train_on: str, lengths: list[int]) -> None:
    failed = make_attempt([0], lengths=[5], part="pilot")
    pilot = make_attempt([0, 1], lengths=[1, 2], part="pilot")
    commit = make_attempt([0, 1], lengths=[3, 4], part="commit")
    group = make_group(failed, pilot, commit)
    samples = training_samples([group], settings(train_on=train_on), max_new_tokens=10)
    assert [len(s.token_ids) for s in samples] == lengths
    assert statistics_of(group).count == 5


def test_a_sample_has_its_prompt_and_completion() -> None:
    group = make_group(MIXED, prompt=make_prompt(length=7))
    samples = training_samples([group], settings(), max_new_tokens=10)
    for sample, completion in zip(samples, MIXED.completions, strict=True):
        assert sample.prompt_token_ids is group.prompt.token_ids
        assert sample.token_ids is completion.token_ids
        assert sample.behaviour_logprobs is completion.logprobs
        assert sample.token_weights.shape == completion.token_ids.shape


def test_advantages_use_epsilon_and_bound_of_the_settings() -> None:
    group = make_group([0, 0, 0, 0], MIXED)
    chosen = settings(advantage_epsilon=0.5, advantage_bound=1.0)
    samples = training_samples([group], chosen, max_new_tokens=10)
    statistics = statistics_of(group)
    expected = advantages(group.last.rewards, statistics, statistics, chosen)
    assert [s.advantage for s in samples] == expected.tolist()
    assert max(s.advantage for s in samples) == 1.0


@pytest.mark.parametrize("kind", ["grpo", "bnpo"])
def test_weights_of_means_sum_to_1(kind: str) -> None:
    samples = training_samples([make_group(MIXED), make_group(FLAT)], settings(kind=kind), max_new_tokens=10)
    assert len(samples) == 6
    assert total_weight(samples) == pytest.approx(1.0)


def test_dr_grpo_divides_by_the_token_limit() -> None:
    samples = training_samples([make_group(MIXED), make_group(FLAT)], settings(kind="dr_grpo"), max_new_tokens=10)
    assert total_weight(samples) == pytest.approx(20 / (6 * 10))  # 20 tokens; 6 completions of up to 10


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo"])
def test_zero_advantages_are_left_out_without_kl_and_other_weights_stay(kind: str) -> None:
    groups = [make_group(MIXED), make_group(FLAT)]
    every = training_samples(groups, settings(beta=0.04, kind=kind), max_new_tokens=10)
    some = training_samples(groups, settings(beta=0.0, kind=kind), max_new_tokens=10)
    assert [s.advantage for s in every[4:]] == [0.0, 0.0]
    assert len(some) == 4
    for with_kl, without in zip(every, some, strict=False):
        assert without.advantage == with_kl.advantage
        assert without.token_weights.tolist() == with_kl.token_weights.tolist()


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo"])
def test_a_step_without_groups_has_no_samples(kind: str) -> None:
    assert training_samples([], settings(kind=kind), max_new_tokens=10) == ()


def test_zero_std_groups_give_no_samples_without_kl() -> None:
    assert training_samples([make_group(FLAT)], settings(beta=0.0), max_new_tokens=10) == ()


def cut_off(group: Group, *places: int) -> Group:
    """`group` with truncated completions in its last attempt."""
    completions = tuple(
        replace(c, finish_reason="length") if i in places else c for i, c in enumerate(group.last.completions)
    )
    return replace(group, attempts=(*group.attempts[:-1], replace(group.last, completions=completions)))


MASKING = {"mask_truncated_completions": True}


@pytest.mark.parametrize("train_on", ["last", "all", "balanced"])
@pytest.mark.parametrize("name", ["grpo", "dapo", "adagrpo"])
def test_masking_truncated_completions_does_not_change_the_statistics(name: str, train_on: str) -> None:
    group = cut_off(make_group(MIXED), 0, 3)
    plain = settings(name=name, train_on=train_on)
    masking = plain.model_copy(update={"loss": plain.loss.model_copy(update=MASKING)})
    every, some = (training_samples([group], s, max_new_tokens=10) for s in (plain, masking))
    assert [len(s.token_ids) for s in every] == [1, 2, 3, 4]
    assert [len(s.token_ids) for s in some] == [2, 3]
    # Mean and standard deviation are those of all four rewards.
    assert [s.advantage for s in some] == [s.advantage for s in every[1:3]]


@pytest.mark.parametrize(
    ("kind", "weight"), [("bnpo", 5 / 5), ("dapo", 5 / 5), ("cispo", 5 / 5), ("grpo", 2 / 4), ("dr_grpo", 5 / 40)]
)
def test_masked_completions_count_in_the_normalisation_as_in_trl(kind: str, weight: float) -> None:
    samples = training_samples(
        [cut_off(make_group(MIXED), 0, 3)], settings(loss={"kind": kind, **MASKING}), max_new_tokens=10
    )
    assert total_weight(samples) == pytest.approx(weight)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_step_whose_completions_are_all_truncated_has_no_samples_on_any_rank(ranks: int) -> None:
    group = cut_off(make_group(MIXED), 0, 1, 2, 3)
    samples = training_samples([group], settings(loss=MASKING), max_new_tokens=10)
    assert samples == ()
    assert [batch.micro_batches for batch in pack_batches(1, samples, ranks, 100)] == [()] * ranks


@pytest.mark.parametrize("kind", ["grpo", "gspo", "bnpo", "dapo", "cispo", "dr_grpo"])
def test_empty_completions_are_left_out(kind: str) -> None:
    group = make_group(make_attempt([1, 0, 0], lengths=[0, 1, 0]))
    samples = training_samples([group], settings(kind=kind), max_new_tokens=10)
    assert [len(s.token_ids) for s in samples] == [1]
    nothing = make_group(make_attempt([1, 0], lengths=[0, 0]))
    assert training_samples([nothing], settings(kind=kind), max_new_tokens=10) == ()


def test_an_entropy_bonus_keeps_zero_advantages() -> None:
    loss = {"beta": 0.0, "entropy_coef": 0.01}
    assert len(training_samples([make_group(FLAT)], settings(loss=loss), max_new_tokens=10)) == 2


def test_samples_have_the_difficulty_of_their_prompt() -> None:
    group = make_group(MIXED, prompt=make_prompt(difficulty="2 digits"))
    assert {s.difficulty for s in training_samples([group], settings(), 10)} == {"2 digits"}


def picked(*attempts: list[float], train_on: str) -> list[float]:
    """Advantages of the samples that are trained on, from attempts with rewards 0 and 1."""
    return [s.advantage for s in training_samples([make_group(*attempts)], settings(train_on=train_on), 10)]


def test_all_attempts_are_trained_on_newest_first_with_the_same_statistics() -> None:
    # Mean 1/8 and sample std 0.353553 over the eight rewards.
    high, low = pytest.approx(2.474174, abs=1e-6), pytest.approx(-0.353453, abs=1e-6)
    assert picked([0, 0, 0, 0], [1, 0, 0, 0], train_on="all") == [high, low, low, low, low, low, low, low]


@pytest.mark.parametrize(
    ("attempts", "correct"),
    [
        (([0, 0, 0, 0], [1, 0, 0, 0]), 1),  # as many as there are
        (([0, 0, 0, 0], [1, 1, 0, 1]), 2),  # up to half
        (([1, 1, 1, 1], [1, 1, 0, 1]), 3),  # one wrong one is all there is
        (([0, 0, 0, 0], [0, 0, 0, 0]), 0),
    ],
)
def test_balanced_picks_correct_completions_up_to_half_of_an_attempt(
    attempts: tuple[list[float], ...], correct: int
) -> None:
    samples = training_samples([make_group(*attempts)], settings(train_on="balanced"), 10)
    assert len(samples) == 4
    assert sum(s.advantage > 0 for s in samples) == correct


def test_balanced_fills_a_group_whose_last_attempt_is_a_solved_pilot() -> None:
    pilots = [make_attempt([0, 0], part="pilot"), make_attempt([1, 1], rung=0, part="pilot")]
    group = replace(make_group(*pilots), size=4)
    samples = training_samples([group], settings(train_on="balanced"), 10)
    assert [s.advantage > 0 for s in samples] == [True, True, False, False]


def test_balanced_prefers_the_newest_failures() -> None:
    old, new = make_attempt([0, 0], lengths=[1, 1]), make_attempt([1, 0], rung=0, lengths=[5, 6])
    samples = training_samples([make_group(old, new)], settings(train_on="balanced"), 10)
    assert [len(s.token_ids) for s in samples] == [5, 6]


BY_VARIANCE: dict[str, Any] = {"train_on": "max_variance", "train_size": 4}
WIDE = make_attempt([5, -2, 0, 1, 3, -1], rung=0, correct=[True, False, False, True, True, False], lengths=[1] * 6)


def batch(*groups: Group, **chosen: object) -> list[float]:
    return [s.advantage for s in training_samples(groups, settings(**chosen), 10)]  # type: ignore[arg-type]


def test_max_variance_picks_the_extremes_of_all_attempts_newest_first() -> None:
    old = make_attempt([0, 0, 0, 0], lengths=[1, 2, 3, 4])
    new = make_attempt([1, 1, 1, 0], rung=0, lengths=[5, 6, 7, 8])
    samples = training_samples([make_group(old, new)], settings(**BY_VARIANCE), 10)
    assert [len(s.token_ids) for s in samples] == [5, 6, 8, 1]  # the newest failure, then an older one
    # The statistics are those of all eight rewards: mean 3/8, squared deviations 3 * 25/64 + 5 * 9/64 = 15/8, std
    # sqrt(15/56) = 0.517549.
    assert [s.advantage for s in samples] == pytest.approx([0.625 / 0.517649] * 2 + [-0.375 / 0.517649] * 2, abs=1e-6)


def test_max_variance_normalised_by_the_picked_completions_is_that_of_the_paper() -> None:
    # Picked are 5, -2, 3, -1: mean 5/4, squared deviations 225/16 + 169/16 + 49/16 + 81/16 = 131/4, std 3.304038.
    found = batch(make_group(WIDE), **BY_VARIANCE, advantage_statistics="trained")
    assert found == pytest.approx([value / 3.304138 for value in (3.75, -3.25, 1.75, -2.25)], abs=1e-6)


@pytest.mark.parametrize(("group_size", "trained"), [(4, 2), (5, 3), (8, 4)])
def test_max_variance_trains_on_half_of_a_group_by_default(group_size: int, trained: int) -> None:
    group = make_group([1.0] + [0.0] * (group_size - 1))
    chosen = settings(train_on="max_variance", group_size=group_size)
    samples = training_samples([group], chosen, 10)
    assert len(samples) == trained
    assert sum(s.advantage > 0 for s in samples) == 1


def test_adagrpo_has_the_statistics_of_all_attempts_and_half_of_the_completions_by_default() -> None:
    group = make_group([0] * 4, [1, 0, 0, 0])
    of_defaults, of_maxrl = (
        [s.advantage for s in training_samples([group], AlgorithmSettings(group_size=4, **scale), 10)]
        for scale in ({}, {"advantage_scale": "mean"})
    )
    assert of_defaults == pytest.approx([2.4742, -0.3535], abs=1e-4)
    assert of_maxrl == pytest.approx([7, -1])


def test_train_size_limits_balanced_completions() -> None:
    six = settings(train_on="balanced", train_size=6)
    samples = training_samples([make_group([0, 0, 0, 0], [1, 1, 1, 0])], six, 10)
    assert [s.advantage > 0 for s in samples] == [True] * 3 + [False] * 3
    assert len(training_samples([make_group([1, 0])], six, 10)) == 2


@pytest.mark.parametrize(
    ("statistics", "mean", "std"),
    [
        ("all", 1 / 8, 0.353553),  # of 0, 0, 0, 0, 1, 0, 0, 0
        ("last", 1 / 4, 0.5),  # of 1, 0, 0, 0
        ("trained", 1 / 8, 0.353553),
    ],
)
def test_statistics_are_those_that_the_settings_name(statistics: str, mean: float, std: float) -> None:
    found = batch(make_group([0, 0, 0, 0], [1, 0, 0, 0]), train_on="all", advantage_statistics=statistics)
    assert found == pytest.approx([(1 - mean) / (std + 1e-4)] + [-mean / (std + 1e-4)] * 7, abs=1e-5)


def test_statistics_of_the_trained_completions_depend_on_the_picked_ones() -> None:
    group = make_group([0, 0, 0, 0], [1, 0, 0, 0])
    last = batch(group, train_on="last", advantage_statistics="trained")
    assert last == batch(group, train_on="last", advantage_statistics="last")
    # One success and one failure: mean 1/2, std sqrt(1/2) = 0.707107.
    pair = batch(group, train_on="balanced", train_size=2, advantage_statistics="trained")
    assert pair == pytest.approx([0.5 / 0.707207, -0.5 / 0.707207], abs=1e-6)


@pytest.mark.parametrize("train_on", ["last", "all", "balanced", "max_variance"])
@pytest.mark.parametrize("statistics", ["all", "last", "trained"])
@pytest.mark.parametrize("scale", ["std", "none", "batch", "mean"])
def test_every_scale_takes_every_statistics_and_selection(scale: str, statistics: str, train_on: str) -> None:
    chosen = {"train_on": train_on, "advantage_statistics": statistics, "advantage_scale": scale}
    size = {"train_size": 4} if train_on == "max_variance" else {}
    found = batch(make_group([0, 0, 0, 0], [1, 0, 0, 0]), make_group([1, 1, 1, 0]), **chosen, **size)
    assert len(found) == (12 if train_on == "all" else 8)
    assert sum(advantage > 0 for advantage in found) == 4
    if statistics != "all" and (statistics, train_on) != ("last", "all"):
        size_of_first = 8 if train_on == "all" else 4
        assert sum(found[:size_of_first]) == pytest.approx(0, abs=1e-5)  # the mean is that of these completions


def test_the_scale_of_the_batch_is_over_all_groups() -> None:
    hard, easy = make_group([0, 0, 0, 0], [1, 0, 0, 0]), make_group([1, 1, 1, 0])
    found = batch(hard, easy, advantage_scale="batch")
    # The std of the twelve rewards is 0.492366, of the group's own mean 1/8 and 3/4.
    expected = [0.875, -0.125, -0.125, -0.125, 0.25, 0.25, 0.25, -0.75]
    assert found == pytest.approx([value / 0.492466 for value in expected], abs=1e-6)
    assert batch(make_group(FLAT), make_group([0, 0]), advantage_scale="batch") == [0.0] * 4


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo"])
def test_prompts_that_were_left_out_weigh_as_groups_without_a_gradient(kind: str) -> None:
    mixed, solved = make_group([1, 0, 0, 0]), make_group([1, 1, 1, 1])
    settings = AlgorithmSettings.model_validate({"loss": {"kind": kind, "beta": 0.0}, "train_on": "last"})
    sampled = training_samples([mixed, solved, solved, solved], settings, max_new_tokens=10)
    left_out = training_samples([mixed], settings, max_new_tokens=10, left_out=3)
    assert len(sampled) == len(left_out) == 4
    for one, other in zip(sampled, left_out, strict=True):
        assert other.token_weights.tolist() == pytest.approx(one.token_weights.tolist())
        assert other.advantage == one.advantage
