"""Pilots and commits: which part of an attempt is sampled, when, and with which parameters."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrpo_ray.algorithm.criterion import any_correct
from adagrpo_ray.algorithm.ladder import Ladder, request_seed
from adagrpo_ray.algorithm.posterior import ClassResults, PromptResults
from adagrpo_ray.algorithm.statistics import statistics_of
from adagrpo_ray.checkpoint.sampler_state import from_plain, to_plain
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.pilot import Planner, verdict
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import Attempt, Completion, GenerationRequest, Group, SamplingParams
from tests.support.builders import make_attempt, make_group, make_prompt
from tests.support.loops import run
from tests.support.rollouts import LADDER, LIMIT, UNSCORED, Rollouts, chance, sampler_of, scripted

NONE, SOME, ALL = (0.0, 0.0), (0.0, 1.0), (1.0, 1.0)
BROKEN = (UNSCORED, UNSCORED)
PILOTS: dict[str, Any] = {"pilot_size": 2, "triggers": LADDER, "resample": "immediate"}


def one_step(rollouts: Rollouts, prompts: Sequence[str] = "a", **changes: Any) -> Collection:
    return run(sampler_of(rollouts, prompts, **{**PILOTS, **changes}).collect(1))


def parts(group: Group) -> list[tuple[str, int, int]]:
    """Part, rung and number of completions of each entry."""
    return [(a.part, a.rung, len(a.completions)) for a in group.attempts]


def sent(rollouts: Rollouts) -> list[tuple[str, int, float, int]]:
    return [(r.prompt_id, r.n, r.sampling.temperature, r.seed) for r in rollouts.requests]


def ids(groups: Sequence[Group]) -> str:
    return "".join(group.prompt.id for group in groups)


# --- the rule


def test_a_solved_pilot_has_no_commit() -> None:
    rollouts = Rollouts(scripted({"a": [ALL]}))
    step = one_step(rollouts)
    assert [r.n for r in rollouts.requests] == [2]
    assert parts(step.ready[0]) == [("pilot", -1, 2)]


def test_a_pilot_with_some_correct_completions_is_followed_by_the_rest_of_the_group() -> None:
    rollouts = Rollouts(scripted({"a": [SOME, NONE]}))
    step = one_step(rollouts)
    (group,) = step.ready  # although the commit has no correct completion
    assert parts(group) == [("pilot", -1, 2), ("commit", -1, 2)]
    assert sent(rollouts) == [
        ("a", 2, 1.0, request_seed(7, "a", 0, 0)),
        ("a", 2, 1.0, request_seed(7, "a", 0, 0, commit=True)),
    ]
    assert len({r.seed for r in rollouts.requests}) == 2
    assert statistics_of(group).count == group.size == 4
    assert [len(g.attempts) for g in step.attempts] == [1, 2]


@pytest.mark.parametrize("resample", ["immediate", "deferred"])
def test_a_failed_pilot_is_sampled_again_on_the_next_rung_as_a_pilot(resample: str) -> None:
    async def steps() -> list[Collection]:
        return [await sampler.collect(step) for step in (1, 2, 3)]

    rollouts = Rollouts(scripted({"a": [NONE, NONE, SOME, ALL], "b": [ALL]}))
    sampler = sampler_of(rollouts, "abbbbbbb", **{**PILOTS, "prompts_per_step": 2, "resample": resample})
    collections = run(steps())
    (group,) = (g for c in collections for g in c.ready if g.prompt.id == "a")
    assert parts(group) == [("pilot", -1, 2), ("pilot", 0, 2), ("pilot", 1, 2), ("commit", -1, 2)]
    assert [(r.n, r.sampling.temperature) for r in rollouts.of("a")] == [(2, 1.0), (2, 1.1), (2, 1.3), (2, 1.0)]
    assert rollouts.of("a")[3].seed == request_seed(7, "a", 0, 2, commit=True)
    assert (statistics_of(group).count, statistics_of(group).mean) == (8, 3 / 8)
    assert group.resamples == 2
    assert [a.part for a in group.final] == ["pilot", "commit"]
    assert [ids(c.waiting) for c in collections] == (["", "", ""] if resample == "immediate" else ["a", "a", ""])


def test_a_group_whose_pilots_all_fail_is_exhausted() -> None:
    step = one_step(Rollouts(scripted({"a": [NONE]})))
    assert parts(step.exhausted[0]) == [("pilot", -1, 2), ("pilot", 0, 2), ("pilot", 1, 2)]


def test_a_commit_waits_for_no_other_group() -> None:
    async def scenario() -> Collection:
        collecting = asyncio.create_task(sampler_of(rollouts, "ab", **PILOTS).collect(1))
        await rollouts.settled()
        await rollouts.release("b")
        assert [r.prompt_id for r in rollouts.requests] == ["a", "b", "b"]
        for prompt in "aba":
            await rollouts.release(prompt)
        return await collecting

    rollouts = Rollouts(scripted({"a": [SOME, ALL], "b": [SOME, NONE]}), held=True)
    assert ids(run(scenario()).ready) == "ab"


def pilot(*rewards: float) -> Attempt:
    return make_attempt(rewards, part="pilot")


def test_the_verdict_depends_on_part_and_criterion() -> None:
    committed = make_group(pilot(0, 1), make_attempt([0, 0], part="commit"))
    asked: list[Group] = []

    def never(group: Group) -> bool:
        asked.append(group)
        return False

    assert verdict(make_group(pilot(0, 1)), any_correct) == "commit"
    assert verdict(make_group(pilot(0, 0)), any_correct) == "resample"
    assert verdict(make_group([0.0, 1.0]), any_correct) == "ready"
    assert verdict(make_group([0.0, 0.0]), any_correct) == "resample"
    assert verdict(make_group(pilot(0, 1)), never) == "resample"
    assert len(asked) == 1
    # A solved pilot and a commit need no criterion.
    assert verdict(make_group(pilot(1, 1)), never) == "ready"
    assert verdict(committed, never) == "ready"
    assert len(asked) == 1


def test_a_group_that_is_not_larger_than_a_pilot_is_sampled_as_a_whole() -> None:
    planner = Planner(SamplingParams(), 2, LIMIT, seed=7)
    planned = [planner.attempt(replace(make_group(), size=size), SamplingParams()) for size in (2, 3)]
    assert [(p.part, p.request.n, p.price) for p in planned] == [("whole", 2, 2), ("pilot", 2, 3)]


def test_a_pilot_that_fails_the_criterion_is_sampled_again_although_some_are_correct() -> None:
    rollouts = Rollouts(scripted({"a": [SOME, (0.0, 9.0), NONE]}))
    step = one_step(rollouts, criterion={"kind": "any_above", "threshold": 5.0})
    assert parts(step.ready[0]) == [("pilot", -1, 2), ("pilot", 0, 2), ("commit", -1, 2)]


def test_a_ladder_of_the_user_sees_one_entry_for_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    original = Ladder.next

    def watched(self: Ladder, group: Group, step: int) -> SamplingParams | None:
        seen.append([a.part for a in group.attempts])
        return original(self, group, step)

    monkeypatch.setattr(Ladder, "next", watched)
    one_step(Rollouts(scripted({"a": [NONE, SOME, NONE]})))
    assert seen == [[], ["pilot"]]


# --- the budget


def test_completions_of_a_commit_that_is_not_sampled_pay_for_another_group() -> None:
    rollouts = Rollouts(scripted({"a": [ALL], "b": [ALL], "c": [SOME, NONE], "d": [ALL]}))
    step = one_step(rollouts, "abcd", budget=8)
    assert ids(step.ready) == "abc"  # two of two each, one of four
    assert sum(r.n for r in rollouts.requests) == 8


def test_a_commit_never_lacks_room() -> None:
    rollouts = Rollouts(scripted({name: [SOME, SOME] for name in "abc"}))
    step = one_step(rollouts, "abc", budget=11)
    assert (ids(step.ready), step.waiting) == ("ab", ())
    assert [parts(g)[1][0] for g in step.ready] == ["commit", "commit"]


@settings(max_examples=40, deadline=None)
@given(
    budget=st.integers(4 * LIMIT, 20 * LIMIT),
    unit=st.sampled_from(["tokens", "completions"]),
    resample=st.sampled_from(["immediate", "deferred"]),
    order=st.integers(0, 2**32),
    rates=st.lists(st.sampled_from([0.0, 0.3, 0.7, 1.0]), min_size=5, max_size=5),
)
def test_no_step_with_pilots_exceeds_its_budget_or_loses_a_commit(
    budget: int, unit: str, resample: str, order: int, rates: list[float]
) -> None:
    rollouts = Rollouts(chance(dict(zip("abcde", rates, strict=True))), held=True)
    budget = budget if unit == "tokens" else budget // LIMIT
    sampler = sampler_of(rollouts, "abcde", **{**PILOTS, "resample": resample, "budget": budget, "budget_unit": unit})
    draw = random.Random(order)
    for step in (1, 2):
        rollouts.restart()
        collection = run(rollouts.released(sampler.collect(step), draw))
        assert (rollouts.most if unit == "tokens" else sum(r.n for r in rollouts.requests)) <= budget
        for group in (*collection.ready, *collection.waiting, *collection.exhausted):
            last = group.last if group.attempts else None
            assert last is None or last.part == "commit" or last.correct.all() or not last.correct.any()


# --- a step that ends between pilot and commit


def cut(rollouts: Rollouts, sampler: AdaptiveSampler) -> None:
    """Collect a step of one place and two groups, of which b ends it, after the pilot of a."""

    async def scenario() -> Collection:
        collecting = asyncio.create_task(sampler.collect(1))
        await rollouts.settled()
        await rollouts.release("a")
        await rollouts.release("b")
        return await collecting

    collection = run(scenario())
    assert (ids(collection.ready), ids(collection.late)) == ("b", "a")
    assert [parts(g) for g in collection.late] == [[("pilot", -1, 2)]]
    rollouts.held, rollouts.requests = False, []


def cut_sampler(script: Mapping[str, Sequence[Sequence[float]]]) -> tuple[Rollouts, AdaptiveSampler]:
    rollouts = Rollouts(scripted(script), held=True)
    return rollouts, sampler_of(rollouts, "abcd", **{**PILOTS, "prompts_per_step": 1, "over_sample": 1.0})


SCRIPT = {"a": [SOME, NONE], "b": [ALL], "c": [ALL], "d": [ALL]}


def test_the_next_step_begins_with_the_commit() -> None:
    rollouts, sampler = cut_sampler(SCRIPT)
    cut(rollouts, sampler)
    commit = ("a", 2, 1.0, request_seed(7, "a", 0, 0, commit=True))
    rollouts.rewards = scripted({**SCRIPT, "a": [NONE]})
    second = run(sampler.collect(2))
    assert sent(rollouts)[0] == commit
    assert parts(next(g for g in second.ready if g.prompt.id == "a")) == [("pilot", -1, 2), ("commit", -1, 2)]


def test_a_resumed_run_sends_the_same_commit() -> None:
    rollouts, sampler = cut_sampler(SCRIPT)
    cut(rollouts, sampler)
    plain, arrays = to_plain(sampler.state_dict())
    assert [a["part"] for a in plain["waiting"][0]["attempts"]] == ["pilot"]
    prompts = {name: make_prompt(name) for name in "abcd"}
    other_rollouts, other = cut_sampler(SCRIPT)
    other_rollouts.held = False
    other.load_state_dict(from_plain(plain, arrays, prompts))
    for each in (rollouts, other_rollouts):
        each.rewards = scripted({**SCRIPT, "a": [NONE]})
    ends = [run(each.collect(2)) for each in (sampler, other)]
    assert sent(rollouts) == sent(other_rollouts)
    assert [parts(g) for g in ends[0].ready] == [parts(g) for g in ends[1].ready]


def test_a_pilot_scored_after_the_end_of_its_step_leaves_the_commit_to_the_next() -> None:
    async def scenario() -> Collection:
        rollouts.scoring["a"] = asyncio.Event()
        collecting = asyncio.create_task(sampler.collect(1))
        await rollouts.settled()
        await rollouts.release("a")
        await rollouts.release("b")
        assert not collecting.done()
        rollouts.scoring["a"].set()
        return await collecting

    rollouts, sampler = cut_sampler(SCRIPT)
    step = run(scenario())
    assert [parts(g) for g in step.late] == [[("pilot", -1, 2)]]
    assert [r.prompt_id for r in rollouts.requests] == ["a", "b"]
    rollouts.held, rollouts.scoring = False, {}
    second = run(sampler.collect(2))
    assert [(r.n, r.seed) for r in rollouts.of("a")[1:]] == [(2, request_seed(7, "a", 0, 0, commit=True))]
    assert "a" in ids(second.ready)


def test_an_error_in_a_commit_undoes_the_collection() -> None:
    async def fails(request: GenerationRequest) -> tuple[Completion, ...]:
        if broken and request.seed == request_seed(7, "a", 0, 0, commit=True):
            raise RuntimeError("no engine")
        return await working(request)

    rollouts = Rollouts(scripted({"a": [SOME, NONE], "b": [ALL]}))
    working, broken = rollouts.generate, [True]
    rollouts.generate = fails  # type: ignore[method-assign]
    sampler = sampler_of(rollouts, "ab", **PILOTS)
    before = sampler.state_dict()
    with pytest.raises(RuntimeError, match="no engine"):
        run(sampler.collect(1))
    assert sampler.state_dict() == before
    broken.clear()
    rollouts.requests = []
    step = run(sampler.collect(1))
    assert ids(step.ready) == "ab"
    assert [r.n for r in rollouts.of("a")] == [2, 2]


@pytest.mark.parametrize("drop", [True, False])
def test_a_commit_that_cannot_be_scored(drop: bool) -> None:
    rollouts = Rollouts(scripted({"a": [SOME, BROKEN], "b": [ALL]}))
    step = run(sampler_of(rollouts, "ab", drop_failed=drop, **PILOTS).collect(1))
    (failure,) = step.failed
    assert (failure.part, failure.dropped, failure.resample) == ("commit", drop, False)
    assert parts(failure.group) == [("pilot", -1, 2)]
    assert ids(step.ready) == ("b" if drop else "ab")
    if not drop:
        assert step.ready[0].last.rewards.tolist() == [-4.0, -4.0]


def test_a_prompt_that_is_given_up_in_its_commit_is_dropped_and_takes_no_budget() -> None:
    rollouts = Rollouts(scripted({"a": [SOME, None], "b": [ALL], "c": [ALL]}))
    step = one_step(rollouts, "abc", budget=8)
    (failure,) = step.failed
    assert (failure.part, failure.dropped, failure.generated) == ("commit", True, False)
    assert ids(step.ready) == "bc"  # c needs room for four, which a and b leave


# --- what is learned from the results


def test_results_are_of_pilots_and_commits_but_not_of_resamples() -> None:
    rollouts = Rollouts(scripted({"a": [SOME, ALL, SOME, NONE], "b": [NONE, SOME, ALL, NONE]}))
    allocation = {"enabled": True, "min_group": 4, "max_group": 4, "discount": 0.5, "hard_below": 0.0}
    sampler = sampler_of(rollouts, "ab", **{**PILOTS, "allocation": allocation})
    run(sampler.collect(1))
    # Without the commit of a: of its pilot one of two is correct, and none of b's.
    assert sampler.state_dict()["classes"] == {"": ClassResults().after([(1, 2), (0, 2)], 0.5)}
    assert sampler.state_dict()["results"] == {"a": PromptResults(3, 1, 1 / 3), "b": PromptResults(0, 2, 1 / 3)}
    run(sampler.collect(2))
    rate = sampler.state_dict()["classes"][""].rate
    kept = 0.5 * (1 - abs(rate - 1 / 3)) ** 2
    a = sampler.state_dict()["results"]["a"]
    assert (a.correct, a.wrong, a.class_rate) == (pytest.approx(kept * 3 + 1), pytest.approx(kept * 1 + 3), rate)
