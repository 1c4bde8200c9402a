"""Replayed groups in a step: the batch, the metrics, the samples, and the state of the sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.algorithm.replay import Replayable
from adagrpo_ray.checkpoint.sampler_state import from_plain, to_plain
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.sampling.batch import training_samples
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.metrics import sampling_metrics
from adagrpo_ray.sampling.sample_table import group_samples
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import Attempt, Group
from tests.support.builders import NOTHING, make_attempt, make_group, make_prompt
from tests.support.loops import run
from tests.support.rollouts import LADDER, Rollouts, chance, sampler_of, scripted

PASS, ALL, NONE = (1.0, 0.0, 0.0, 0.0), (1.0,) * 4, (0.0,) * 4
REPLAY: dict[str, Any] = {"replay": {"max_age": 2, "share": 1.0}}
CLASSIC: dict[str, Any] = {"train_on": "last", "advantage_scale": "std"}
SETTINGS = AlgorithmSettings(**CLASSIC)
FRESH = make_group(make_attempt([1, 0]), prompt=make_prompt("fresh"))
RARE = make_group(make_attempt([0, 0]), make_attempt([1, 0], rung=0), prompt=make_prompt("rare"))
STEP = replace(NOTHING, ready=(FRESH,), attempts=(FRESH,), replayed=(Replayable(RARE, 4, 1),))


def replayed(collection: Collection) -> list[tuple[str, int]]:
    return [(each.group.prompt.id, each.step) for each in collection.replayed]


def collected(sampler: AdaptiveSampler, first: int, last: int) -> list[Collection]:
    return [run(sampler.collect(step)) for step in range(first, last + 1)]


@pytest.mark.parametrize("name", ["grpo", "adagrpo"])
def test_a_step_with_few_informative_groups_is_filled_up(name: str) -> None:
    script = {"a": [PASS], "b": [PASS], "c": [ALL], "d": [NONE]}
    sampler = sampler_of(Rollouts(scripted(script)), [*script], name=name, prompts_per_step=2, triggers=[], **REPLAY)
    assert [replayed(step) for step in collected(sampler, 1, 3)] == [[], [("a", 1), ("b", 1)], []]


def test_a_step_of_dapo_without_budget_for_more_prompts_is_filled_up() -> None:
    script = {"a": [PASS], "b": [PASS], "c": [ALL], "d": [ALL]}
    settings: dict[str, Any] = {"name": "dapo", "prompts_per_step": 2, "budget": 8}
    sampler = sampler_of(Rollouts(scripted(script)), [*script], **settings, **REPLAY)
    first, second = collected(sampler, 1, 2)
    assert ([g.prompt.id for g in first.ready], replayed(first)) == (["a", "b"], [])
    assert (second.ready, replayed(second)) == ((), [("a", 1), ("b", 1)])


def test_exhausted_groups_that_are_dropped_are_not_replayed() -> None:
    """Three correct completions are not balanced, although they give advantages."""
    script = {"a": [(1.0, 1.0, 1.0, 0.0)], "b": [NONE]}
    settings: dict[str, Any] = {"criterion": {"kind": "balanced"}, "triggers": [], "prompts_per_step": 1, **REPLAY}
    for on_exhausted, expected in (("train", [("a", 1)]), ("drop", [])):
        sampler = sampler_of(Rollouts(scripted(script)), [*script], on_exhausted=on_exhausted, **settings)
        assert replayed(collected(sampler, 1, 2)[1]) == expected


def test_a_prompt_that_its_class_has_solved_is_not_replayed() -> None:
    """After steps of solved prompts of the same class the posterior expects the first one to be solved, too."""
    script = {"a": [PASS], **{name: [ALL] for name in "bcdefgh"}}
    settings: dict[str, Any] = {"prompts_per_step": 1, "triggers": [], "replay": {"max_age": 9, "times": 9}}
    for solved_above, expected in ((1.0, True), (0.5, False)):
        allocation = {"solved_above": solved_above, "solved_every": 1, "min_group": 4}
        sampler = sampler_of(Rollouts(scripted(script)), [*script], **{**settings, "allocation": allocation})
        assert bool(replayed(collected(sampler, 1, 6)[-1])) == expected


def test_without_the_setting_nothing_is_kept() -> None:
    sampler = sampler_of(Rollouts(scripted({"a": [PASS], "b": [ALL]})), "ab", prompts_per_step=1)
    assert [replayed(step) for step in collected(sampler, 1, 2)] == [[], []]
    assert sampler.state_dict()["replay"] == []


@pytest.mark.parametrize("name", ["grpo", "adagrpo"])
def test_a_resumed_run_replays_the_same_groups(name: str) -> None:
    rates = {"a": 0.2, "b": 0.9, "c": 0.4, "d": 0.05, "e": 0.7, "f": 0.1}

    def make() -> AdaptiveSampler:
        settings: dict[str, Any] = {"prompts_per_step": 3, "triggers": LADDER, "replay": {"max_age": 3, "times": 2}}
        return sampler_of(Rollouts(chance(rates)), [*rates], name=name, **settings)

    sampler, other = make(), make()
    before = collected(sampler, 1, 4)
    plain, arrays = to_plain(sampler.state_dict())
    assert plain["replay"]
    other.load_state_dict(from_plain(plain, arrays, {id: make_prompt(id) for id in rates}))
    ends = [collected(each, 5, 8) for each in (sampler, other)]
    assert sum(len(step.replayed) for step in (*before, *ends[0])) > 3
    assert [replayed(step) for step in ends[0]] == [replayed(step) for step in ends[1]]
    states = [to_plain(each.state_dict()) for each in (sampler, other)]
    assert states[0][0] == states[1][0]
    assert states[0][1].keys() == states[1][1].keys()
    assert all(np.array_equal(array, states[1][1][key]) for key, array in states[0][1].items())


def test_a_replayed_group_is_in_the_batch_as_any_other_with_its_own_log_probabilities() -> None:
    groups = [FRESH, *(each.group for each in STEP.replayed)]
    samples = training_samples(groups, SETTINGS, max_new_tokens=10)
    assert len(samples) == 4
    assert all(s.behaviour_logprobs is c.logprobs for s, c in zip(samples[2:], RARE.last.completions, strict=True))
    assert {float(s.token_weights[0]) for s in samples} == {np.float32(1 / 8)}  # eight tokens in the batch
    assert samples[2].advantage == pytest.approx((1 - 1 / 4) / 0.5, abs=1e-3)  # of the rewards of all its attempts


def at_version(group: Group, version: int) -> Group:
    """The group with completions of a version of the weights."""

    def stamped(attempt: Attempt) -> Attempt:
        completions = tuple(replace(c, weight_version=version) for c in attempt.completions)
        return replace(attempt, completions=completions)

    return replace(group, attempts=tuple(map(stamped, group.attempts)))


def test_metrics_count_replayed_groups_apart() -> None:
    fresh, old = at_version(FRESH, 6), at_version(RARE, 3)
    step = replace(STEP, ready=(fresh,), attempts=(fresh,), replayed=(Replayable(old, 4, 1),))
    found = sampling_metrics(7, step, ["exact"], 1, SETTINGS, exhausted_dropped=False)
    assert (found.replayed_groups, found.replay_age, found.staleness) == (1, 3.0, 0.0)
    assert (found.informative_groups, found.groups_ready, found.generated_tokens) == (1, 1, fresh.generated_tokens)
    none = sampling_metrics(7, replace(step, replayed=()), ["exact"], 1, SETTINGS, exhausted_dropped=False)
    assert (none.replayed_groups, none.replay_age) == (0, None)
    assert replace(found, replayed_groups=0, replay_age=None) == none


def shown(settings: AlgorithmSettings) -> tuple[GroupSample, ...]:
    return group_samples(7, STEP, ["exact"], settings, 99, exhausted_dropped=False)


def test_samples_name_the_step_that_a_group_is_replayed_from() -> None:
    fresh, again = shown(SETTINGS)
    assert (again.prompt_id, again.outcome, again.step, again.replayed_from) == ("rare", "replayed", 7, 4)
    assert (fresh.outcome, fresh.replayed_from) == ("trained", None)
    assert [c.advantage is None for a in again.attempts for c in a.completions] == [True, True, False, False]


def test_replayed_groups_take_at_most_a_quarter_of_the_samples() -> None:
    old = tuple(Replayable(replace(RARE, epoch=epoch), 4, 1) for epoch in range(3))
    step = replace(STEP, ready=(FRESH,) * 8, replayed=old)
    for count, expected in ((0, 0), (3, 0), (4, 1), (9, 2)):
        found = group_samples(7, step, ["exact"], SETTINGS, count, exhausted_dropped=False)
        assert [len(found), sum(each.outcome == "replayed" for each in found)] == [count, expected]


def test_advantages_of_samples_are_those_of_a_batch_with_replayed_groups() -> None:
    settings = AlgorithmSettings(train_on="last", advantage_scale="batch")
    batch = training_samples([FRESH, RARE], settings, max_new_tokens=10)
    found = [c.advantage for g in shown(settings) for a in g.attempts for c in a.completions]
    assert sorted(a for a in found if a is not None) == sorted(sample.advantage for sample in batch)
