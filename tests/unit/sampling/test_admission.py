"""Groups start and requests are sent as early as places and budget allow, in whatever order others end."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adagrpo_ray.checkpoint.sampler_state import to_plain
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.sampling.admission import resumable
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import GenerationRequest, Group
from tests.support.builders import make_group, make_prompt
from tests.support.loops import run
from tests.support.rollouts import LADDER, LIMIT, Rollouts, chance, sampler_of, scripted

RATES = {"a": 0.0, "b": 1.0, "c": 0.4, "d": 0.05, "e": 0.7, "f": 0.0, "g": 0.2}
ALLOCATIONS: dict[str, dict[str, Any]] = {
    "informative": {"min_group": 4, "max_group": 6},
    "value": {"rule": "value", "min_group": 2, "max_group": 8},
}
FAIL, PASS = (0.0,) * 4, (1.0, 0.0, 0.0, 0.0)


def groups(found: Sequence[Group]) -> list[object]:
    return [
        (g.prompt.id, g.epoch, g.size, g.start, [(a.part, a.rung, a.rewards.tolist()) for a in g.attempts])
        for g in found
    ]


def results(collection: Collection) -> list[object]:
    kinds = (collection.ready, collection.exhausted, collection.waiting, collection.aged, collection.attempts)
    return [*map(groups, kinds), [(groups([f.group]), f.tokens, f.error) for f in collection.failed]]


def state(sampler: AdaptiveSampler) -> tuple[str, dict[str, Any]]:
    plain, arrays = to_plain(sampler.state_dict())
    return json.dumps(plain), {name: array.tolist() for name, array in arrays.items()}


@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(["adagrpo", "adagrpo", "adagrpo", "dapo", "grpo"]),
    budget=st.none()
    | st.integers(8, 40).map(lambda budget: (budget, "completions"))
    | st.integers(8 * LIMIT, 24 * LIMIT).map(lambda budget: (budget, "tokens")),
    places=st.integers(1, 6),
    resample=st.sampled_from(["immediate", "deferred"]),
    pilot=st.sampled_from([None, 2, 3]),
    rule=st.sampled_from(["", "informative", "value"]),
    lost=st.sampled_from(["", "c", "eg"]),
    replaced=st.booleans(),
    orders=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)),
)
def test_groups_and_requests_do_not_depend_on_the_order_in_which_requests_end(
    method: str,
    budget: tuple[int, str] | None,
    places: int,
    resample: str,
    pilot: int | None,
    rule: str,
    lost: str,
    replaced: bool,
    orders: tuple[int, int],
) -> None:
    def rewards(request: GenerationRequest, number: int) -> Sequence[float] | None:
        return None if request.prompt_id in lost and request.seed % 2 else by_chance(request, number)

    def steps(order: int) -> list[object]:
        rollouts, draw = Rollouts(rewards, held=True), random.Random(order)
        ended: list[object] = []
        sampler = sampler_of(
            rollouts,
            [*RATES],
            name=method,
            prompts_per_step=places,
            triggers=LADDER,
            resample=resample,
            pilot_size=pilot if method == "adagrpo" else None,
            budget=budget[0] if budget is not None else None,
            budget_unit=budget[1] if budget is not None else "completions",
            max_group_age=2,
            allocation={**ALLOCATIONS[rule], "solved_above": 0.8, "replace_left_out": replaced}
            if rule
            else {"enabled": False},
        )
        for step in range(1, 4):
            rollouts.requests = []
            collection = run(rollouts.released(sampler.collect(step), draw))
            sent = sorted((r.prompt_id, r.seed, r.n, r.sampling.temperature) for r in rollouts.requests)
            ended.append((sent, results(collection), state(sampler)))
        return ended

    # Groups that share so few completions are no larger than a pilot.
    assume(rule != "value" or budget is None or budget[1] == "tokens" or budget[0] > 2 * (places - 1) + 3)
    by_chance = chance(RATES)
    assert steps(orders[0]) == steps(orders[1])


def test_a_group_starts_while_others_still_generate() -> None:
    """A group of four reserves 64 tokens: two fit, and a third one as soon as one of them has ended."""

    async def scenario() -> tuple[list[str], Collection]:
        collecting = asyncio.create_task(sampler.collect(1))
        await rollouts.settled()
        begun = [sent()]
        for prompt in "bacd":
            await rollouts.release(prompt)
            begun.append(sent())
        return begun, await collecting

    def sent() -> str:
        return "".join(request.prompt_id for request in rollouts.requests)

    rollouts = Rollouts(scripted({name: [PASS] for name in "abcd"}), held=True)
    rollouts.length = 2
    sampler = sampler_of(rollouts, "abcd", budget=11 * LIMIT, budget_unit="tokens")
    begun, step = run(scenario())
    assert begun == ["ab", "abc", "abcd", "abcd", "abcd"]
    assert [g.prompt.id for g in step.ready] == list("abcd")


def test_dapo_replaces_a_zero_std_group_while_others_still_generate() -> None:
    async def scenario() -> Collection:
        collecting = asyncio.create_task(sampler.collect(1))
        await rollouts.settled()
        await rollouts.release("b")
        assert [r.prompt_id for r in rollouts.requests] == ["a", "b", "c"]
        await rollouts.release("c")
        await rollouts.release("a")
        return await collecting

    rollouts = Rollouts(scripted({"a": [PASS], "b": [FAIL], "c": [PASS]}), held=True)
    sampler = sampler_of(rollouts, "abc", name="dapo", prompts_per_step=2)
    step = run(scenario())
    assert [[g.prompt.id for g in found] for found in (step.ready, step.exhausted)] == [["a", "c"], ["b"]]


def test_a_scarce_budget_resamples_groups_in_their_sequence() -> None:
    """Room for one resample of three groups: the first group that fails in sequence gets it, not in time."""

    async def scenario(order: str) -> Collection:
        collecting = asyncio.create_task(sampler.collect(1))
        await rollouts.settled()
        for prompt in order:
            assert len(rollouts.requests) == 3
            await rollouts.release(prompt)
        await rollouts.release("b")
        return await collecting

    for order in ("acb", "cba"):
        rollouts = Rollouts(scripted({"a": [PASS], "b": [FAIL, PASS], "c": [FAIL, PASS]}), held=True)
        sampler = sampler_of(rollouts, "abc", triggers=LADDER, resample="immediate", budget=16)
        step = run(scenario(order))
        assert [[g.prompt.id for g in found] for found in (step.ready, step.waiting)] == [["a", "b"], ["c"]]


def test_a_budget_with_room_for_all_resamples_delays_none() -> None:
    async def scenario() -> Collection:
        collecting = asyncio.create_task(sampler.collect(1))
        await rollouts.settled()
        await rollouts.release("c")
        assert [r.prompt_id for r in rollouts.requests] == ["a", "b", "c", "c"]
        for prompt in "cab":
            await rollouts.release(prompt)
        return await collecting

    rollouts = Rollouts(scripted({"a": [PASS], "b": [PASS], "c": [FAIL, PASS]}), held=True)
    sampler = sampler_of(rollouts, "abc", triggers=LADDER, resample="immediate", budget=24)
    assert [g.prompt.id for g in run(scenario()).ready] == ["a", "b", "c"]


def test_a_budget_is_spent_on_groups_that_are_smaller_than_the_largest() -> None:
    """The second step divides 16 completions by value: one group could have up to 10, and each takes what it needs."""
    rates = {"a": 1.0, "b": 1.0, "c": 0.4, "d": 1.0}
    rollouts = Rollouts(chance(rates))
    allocation = {"rule": "value", "solved_above": 1.0, "hard_below": 0.0, "discount": 1.0}
    sampler = sampler_of(rollouts, "abcd", budget=16, allocation=allocation, triggers=[])
    for step in (1, 2, 3):
        rollouts.restart()
        run(sampler.collect(step))
        assert sum(request.n for request in rollouts.requests) == 16
        assert [request.prompt_id for request in rollouts.requests] == list("abcd")
    assert max(request.n for request in rollouts.requests) > 6


def queue_of(**sizes: int) -> list[Group]:
    """Waiting groups by name; those of upper case are late."""
    return [replace(make_group(prompt=make_prompt(n)), size=size, late=n.isupper()) for n, size in sizes.items()]


@pytest.mark.parametrize(
    ("places", "over_sample", "room", "resumed", "rest"),
    [
        (1, 0.0, math.inf, "A", "abcd"),
        (2, 0.0, math.inf, "Aa", "bcd"),  # the only place that is left
        (5, 0.0, math.inf, "Aab", "cd"),
        (4, 0.5, math.inf, "Aab", "cd"),  # of six places
        (9, 0.0, math.inf, "Aabcd", ""),
        (8, 0.0, 14, "Aab", "cd"),  # six of the other twelve completions
        (8, 0.0, 8, "Aa", "bcd"),  # three of six
        (8, 0.0, 4, "Aa", "bcd"),  # more than half, since nothing else fits
        (8, 0.0, 3, "A", "abcd"),
        (8, 0.0, 1, "", "Aabcd"),
    ],
)
def test_resumed_groups_take_half_of_the_places_and_of_the_room(
    places: int, over_sample: float, room: float, resumed: str, rest: str
) -> None:
    chosen = AlgorithmSettings(prompts_per_step=places, over_sample=over_sample)
    found = resumable(queue_of(a=2, b=3, A=2, c=8, d=2), chosen, room)
    assert tuple("".join(group.prompt.id for group in part) for part in found) == (resumed, rest)


def test_a_step_draws_a_bounded_number_of_prompts() -> None:
    rollouts = Rollouts(scripted({name: [FAIL] for name in "abc"}))
    step = run(sampler_of(rollouts, "abc", name="dapo", prompts_per_step=2).collect(1))
    assert len(rollouts.requests) == 20
    assert (len(step.exhausted), step.ready) == (20, ())
