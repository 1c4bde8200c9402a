"""New groups from prompts in their order: sizes planned together, prompts left out, and the place to go back to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from adagrpo_ray.algorithm.rungs import RungResults
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.sampling.allocator import Allocator
from adagrpo_ray.sampling.calibration import Forecast
from adagrpo_ray.types import Group
from tests.support.builders import make_attempt, make_group, make_prompt

SEED = 7
CLASSIC = {"solved_above": 0.95, "replace_left_out": True, "judge_rungs": False}
"""Prompts are left out only if they are all but certain, and others take their places. Rungs are always used."""
BY_VALUE = {"rule": "value", "discount": 1.0}
SOLVED, EASY, MIXED, HARD = [1.0] * 8, [1.0] * 7 + [0.0], [1.0, 0.0] * 4, [1.0] + [0.0] * 7


def make_allocator(
    prompts: str, per_step: int = 4, *, rest: dict[str, Any] | None = None, **allocation: Any
) -> Allocator:
    """An allocator of groups of 8, by CLASSIC and `allocation`; the first letter of a prompt is its class."""
    settings = AlgorithmSettings.model_validate(
        {"prompts_per_step": per_step, "group_size": 8, "allocation": {**CLASSIC, **allocation}, **(rest or {})}
    )
    made = [make_prompt(name, difficulty=name[0]) for name in prompts.split()]
    return Allocator(PromptOrder(made, SEED, shuffle=False), settings, settings.allocation, SEED)


def learn(allocator: Allocator, results: dict[str, list[float]]) -> None:
    """Teach the allocator the rewards of first attempts, by prompt."""
    allocator.learn(
        [
            Group(make_prompt(name, difficulty=name[0]), 0, 1, 8).with_attempt(make_attempt(rewards))
            for name, rewards in results.items()
        ]
    )


def draw(allocator: Allocator, n: int, step: int) -> list[Group]:
    return [group for group in (allocator.draw(step) for _ in range(n)) if group is not None]


def drawn(groups: Sequence[Group]) -> list[tuple[str, int, int]]:
    return [(group.prompt.id, group.epoch, group.size) for group in groups]


def test_by_value_prompts_without_results_have_the_usual_size() -> None:
    groups = draw(make_allocator("a b c d e f", **BY_VALUE), 6, 3)
    assert drawn(groups) == [(name, 0, 8) for name in "abcdef"]
    assert [(group.born, group.start, group.chance) for group in groups] == [(3, 0, None)] * 6


def test_by_value_the_prompts_of_a_step_share_its_completions() -> None:
    allocator = make_allocator("a b c d", **BY_VALUE)
    learn(allocator, {"a": EASY, "b": MIXED, "c": HARD})
    groups = draw(allocator, 4, 2)
    a, b, c, d = (group.size for group in groups)
    assert a + b + c + d == 32
    assert c > b > a
    # Each is alone in its class, whose rates are 8/10, 5/10 and 2/10; in a sum they count as 2.
    assert [group.chance for group in groups] == [pytest.approx(8.6 / 10), 0.5, pytest.approx(1.4 / 10), None]


def test_groups_that_are_planned_together_are_drawn_in_several_steps() -> None:
    at_once, one_by_one = (make_allocator("a b c d e f", **BY_VALUE) for _ in range(2))
    for allocator in (at_once, one_by_one):
        learn(allocator, {"a": SOLVED, "b": MIXED, "c": HARD})
    expected = draw(at_once, 8, 1)
    found = [group for step in range(1, 9) for group in draw(one_by_one, 1, step)]
    assert drawn(found) == drawn(expected)
    assert [group.born for group in found] == list(range(1, 9))


def test_results_of_a_step_count_for_the_next_plan() -> None:
    allocator = make_allocator("a b c d", 2, **BY_VALUE)
    first = draw(allocator, 1, 1)
    learn(allocator, {"b": HARD, "c": SOLVED, "d": HARD})
    assert drawn(first + draw(allocator, 1, 1)) == [("a", 0, 8), ("b", 0, 8)]  # planned before
    c, d = draw(allocator, 2, 2)
    assert c.size < d.size
    assert c.size + d.size == 16


def test_a_budget_in_completions_is_shared_if_it_is_smaller() -> None:
    budget = {"budget": 32, "budget_unit": "completions"}
    groups = draw(make_allocator("a b c d e f g h", 8, rest=budget, **BY_VALUE), 8, 1)
    assert [group.size for group in groups] == [4] * 8
    tokens = {"budget": 100_000, "budget_unit": "tokens"}
    (group,) = draw(make_allocator("a b", 2, rest=tokens, **BY_VALUE), 1, 1)
    assert group.size == 8


def test_a_new_prompt_is_no_more_certain_than_a_prompt_with_one_group() -> None:
    allocator = make_allocator("a1 a2 a3", 2, **BY_VALUE)
    learn(allocator, {f"a{n}": MIXED for n in range(100, 120)})
    new, other = draw(allocator, 2, 1)
    assert (new.chance, other.chance) == (0.5, 0.5)
    learn(allocator, {"a3": MIXED})
    (third, _) = draw(allocator, 2, 1)
    assert third.prompt.id == "a3"
    assert third.size == 8  # shares evenly with a new prompt of its class


def test_solved_prompts_of_a_class_take_turns_from_their_first_epoch() -> None:
    names = [f"s{n}" for n in range(400)]
    allocator = make_allocator(" ".join(names))
    learn(allocator, {"s": SOLVED * 4})  # the class alone: no prompt has this name
    seen: list[set[str]] = []
    groups = draw(allocator, 400, 1)
    for epoch in range(4):
        seen.append({group.prompt.id for group in groups if group.epoch == epoch})
        assert 60 < len(seen[-1]) < 140
    assert set.union(*seen) == set(names)
    assert sum(map(len, seen)) == len(groups) == 400  # each of them once in four epochs
    assert allocator.skipped(1) == allocator.position.taken - 400
    assert allocator.skipped(1) == 0


def test_a_prompt_that_failed_before_its_class_was_solved_is_left_out_like_the_others() -> None:
    allocator = make_allocator(" ".join(f"s{n}" for n in range(100)))
    learn(allocator, {f"s{n}": [0.0] * 8 for n in range(100)})
    assert {group.start for group in draw(allocator, 100, 1)} == {1}
    for _ in range(20):  # steps without any of them, in which others of their class are solved
        learn(allocator, {f"s{n}": SOLVED for n in range(100, 104)})
    draw(allocator, 20, 2)
    assert allocator.skipped(2) > 40


@pytest.mark.parametrize(("on_rung", "starts"), [([1.0] + [0.0] * 7, {1}), ([0.0] * 8, {0, 1})])
def test_hard_prompts_start_on_the_rung_as_often_as_it_pays(on_rung: list[float], starts: set[int]) -> None:
    allocator = make_allocator(" ".join(f"s{n}" for n in range(200)), judge_rungs=True, discount=1.0)
    failed = [make_group([0.0] * 8, prompt=make_prompt(f"s{n}", "s")) for n in range(200, 240)]
    allocator.learn(failed)
    allocator.learn([group.with_attempt(make_attempt(on_rung, rung=0)) for group in failed])
    assert {group.start for group in draw(allocator, 200, 3)} == starts


def test_results_on_a_rung_are_those_of_all_attempts_but_commits() -> None:
    allocator = make_allocator("a1 a2", 2, discount=1.0)
    first = make_group(make_attempt([0, 0]), prompt=make_prompt("a1", "a"))
    on_rung = make_group(make_attempt([0, 1, 1], rung=0), prompt=make_prompt("a2", "a"))
    allocator.learn([first, on_rung])
    allocator.learn([first.with_attempt(make_attempt([1, 0], rung=0))])
    pilot = make_group(make_attempt([1, 0], part="pilot"), prompt=make_prompt("a1", "a"))
    allocator.learn([pilot, pilot.with_attempt(make_attempt([1, 1, 1], part="commit"))])
    assert allocator.state_dict()["rungs"] == {"a": {-1: RungResults(1, 3), 0: RungResults(3, 2)}}


def test_a_commit_counts_for_its_prompt_and_not_for_its_class() -> None:
    allocator = make_allocator("a1 a2", 2, min_group=2)
    pilots = [
        make_group(make_attempt(r, part="pilot"), prompt=make_prompt(name, "a"))
        for name, r in (("a1", [1, 1]), ("a2", [1, 0]))
    ]
    allocator.learn(pilots)
    before = allocator.state_dict()
    allocator.learn([pilots[1].with_attempt(make_attempt([0] * 6, part="commit"))])
    after = allocator.state_dict()
    assert after["classes"] == before["classes"]
    assert (after["results"]["a2"].correct, after["results"]["a2"].wrong) == (1, 7)
    assert after["results"]["a1"] == before["results"]["a1"]


def test_prompts_count_alike_in_their_class_whatever_their_group_sizes() -> None:
    allocator = make_allocator("a1 a2")
    learn(allocator, {"a1": [1.0] * 2, "a2": [0.0] * 30})
    assert allocator.state_dict()["classes"]["a"].rate == 0.5


def test_hopeless_prompts_take_turns_too() -> None:
    allocator = make_allocator("a b", 1, hopeless_below=0.2)
    learn(allocator, {"a": [0.0] * 8})
    epochs = [group.epoch for group in draw(allocator, 20, 1) if group.prompt.id == "a"]
    assert {second - first for first, second in pairwise(epochs)} == {4}


def test_prompts_are_sampled_again_if_a_whole_pass_is_left_out() -> None:
    allocator = make_allocator("a")
    learn(allocator, {"a": SOLVED * 4})
    assert [group.prompt.id for group in draw(allocator, 5, 1)] == ["a"] * 5


def test_the_position_can_be_set_back() -> None:
    allocator = make_allocator("a b c d e f g", **BY_VALUE)
    learn(allocator, {"a": SOLVED * 4, "b": MIXED, "c": HARD})
    draw(allocator, 3, 1)
    before, state = allocator.position, allocator.state_dict()
    first, skipped = draw(allocator, 9, 2), allocator.skipped(2)
    allocator.position = before
    assert allocator.state_dict() == state
    assert drawn(draw(allocator, 9, 2)) == drawn(first)
    assert allocator.skipped(2) == skipped > 0


def test_a_group_that_is_too_large_is_not_drawn_and_sized_again_later() -> None:
    allocator = make_allocator("a b c d", **BY_VALUE)
    state = allocator.state_dict()
    assert allocator.draw(1, most=7) is None
    assert allocator.state_dict() == state
    learn(allocator, {"a": EASY, "b": HARD})
    group = allocator.draw(1, most=7)
    assert group is not None
    assert (group.prompt.id, group.size <= 7) == ("a", True)
    assert allocator.draw(1, most=7) is None  # the group of b has its size already, and remains the next one
    assert [planned.prompt.id for planned in allocator.state_dict()["planned"]] == ["b", "c", "d"]


def test_a_restored_allocator_draws_the_same_groups() -> None:
    allocator, other = (make_allocator("a b c d e f g", **BY_VALUE) for _ in range(2))
    learn(allocator, {"a": SOLVED, "b": MIXED, "c": HARD})
    draw(allocator, 2, 1)
    other.load_state_dict(allocator.state_dict())
    assert drawn(draw(other, 9, 2)) == drawn(draw(allocator, 9, 2))


def test_without_an_allocation_every_group_has_the_usual_size() -> None:
    settings = AlgorithmSettings.model_validate({"group_size": 8})
    allocator = Allocator(PromptOrder([make_prompt("a")], SEED, shuffle=False), settings, None, SEED)
    allocator.learn(draw(allocator, 1, 1))
    (group,) = draw(allocator, 1, 2)
    assert (group.size, group.start, group.chance) == (8, 0, None)


def test_prompts_that_are_left_out_take_places_if_they_are_not_replaced() -> None:
    names = [f"s{n}" for n in range(40)]
    keeping, replacing = (make_allocator(" ".join(names), replace_left_out=replaces) for replaces in (False, True))
    for allocator in (keeping, replacing):
        learn(allocator, {f"s{n}": SOLVED for n in range(100, 120)})
    expected = [group.prompt.id for group in draw(replacing, 8, 1)]  # each was sampled, and those between left out
    assert replacing.places_left_out(1) == 0

    found, places = [], len(names[: names.index(expected[-1]) + 1])
    while places > 0 and (group := keeping.draw(1, places=places)) is not None:
        found.append(group.prompt.id)
        places = names.index(expected[-1]) + 1 - len(found) - keeping.places_left_out(1)
    assert found == expected
    assert keeping.places_left_out(1) == names.index(expected[-1]) + 1 - len(expected) > 8


def test_a_draw_ends_at_the_last_place_without_a_group() -> None:
    names = [f"s{n}" for n in range(40)]
    allocator = make_allocator(" ".join(names), replace_left_out=False)
    learn(allocator, {f"s{n}": SOLVED for n in range(100, 120)})
    (first, second) = (names.index(group.prompt.id) for group in draw(allocator, 2, 1))
    again = make_allocator(" ".join(names), replace_left_out=False)
    learn(again, {f"s{n}": SOLVED for n in range(100, 120)})
    draw(again, 1, 1)
    between = second - first - 1
    assert between > 0
    assert again.draw(2, places=between) is None
    assert again.places_left_out(2) == between
    assert draw(again, 1, 3)[0].prompt.id == names[second]


@pytest.mark.parametrize("places", [8, 1])
def test_by_value_prompts_are_planned_for_the_places_of_the_step(places: int) -> None:
    """The turns of s0 to s5 are in later epochs, so that every second prompt is left out."""
    names = " ".join(f"s{n} m{n}" for n in range(6))
    allocator = make_allocator(names, 8, replace_left_out=False, **BY_VALUE)
    learn(allocator, {f"s{n}": SOLVED for n in range(100, 120)})
    learn(allocator, {f"m{n}": MIXED for n in range(100, 120)})
    group = allocator.draw(1, places=places, needed=True)
    assert group is not None
    taken = max(places, 2)  # without a place for m0, too, since a group is needed
    every = [group, *allocator.position.planned]
    assert [each.prompt.id for each in every] == [f"m{n}" for n in range(taken // 2)]
    assert sum(each.size for each in every) == 8 * len(every)
    assert (allocator.position.taken, allocator.places_left_out(1)) == (taken, taken // 2)


# --- forecasts


def test_results_are_compared_with_forecasts_made_before_them() -> None:
    allocator = make_allocator("a0 a1", 2)
    groups = draw(allocator, 2, 1)
    assert teach(allocator, groups, EASY) == ()  # nothing was expected
    prior = allocator.state_dict()["classes"]["a"].prior(8).mean
    (again,) = teach(allocator, groups[:1], HARD)
    assert (again.correct, again.completions, again.prior) == (1, 8, prior)
    assert again.expected > prior  # by its own results
    commit = groups[0].with_attempt(make_attempt(HARD, part="commit"))
    assert allocator.learn([commit]) == ()


def teach(allocator: Allocator, groups: Sequence[Group], rewards: Sequence[float]) -> tuple[Forecast, ...]:
    return allocator.learn([group.with_attempt(make_attempt(rewards)) for group in groups])
