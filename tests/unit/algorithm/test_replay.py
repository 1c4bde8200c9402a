"""The replay buffer: the groups that it chooses, their order, and the bounds of age, number and repetition."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrpo_ray.algorithm.replay import ReplayBuffer, success_rate
from adagrpo_ray.config.group_replay import ReplaySettings
from adagrpo_ray.types import Group, Prompt
from tests.support.builders import make_attempt, make_group, make_prompt

RARE, HALF, MANY = (1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0)
SOLVED, FAILED = (1, 1, 1, 1), (0, 0, 0, 0)


def of(prompt: str, *attempts: Sequence[float], epoch: int = 0) -> Group:
    return make_group(*attempts, prompt=make_prompt(prompt), epoch=epoch)


def buffer(places: int = 4, **changes: object) -> ReplayBuffer:
    return ReplayBuffer(ReplaySettings.model_validate({"share": 1.0, **changes}), places)


def fill(
    replay: ReplayBuffer, step: int, *sampled: Group, solved: Callable[[Prompt], bool] = lambda prompt: False
) -> str:
    """Fill up a step that has sampled these groups; the prompts of the groups that it replays, in their order."""
    informative = [group for group in sampled if 0.0 < success_rate(group) < 1.0]
    return "".join(each.group.prompt.id for each in replay.fill(step, informative, sampled, solved))


def test_the_rarest_successes_are_replayed_first_and_of_equal_ones_the_newest() -> None:
    replay = buffer()
    assert fill(replay, 1, of("a", MANY), of("b", HALF), of("c", RARE)) == ""
    assert fill(replay, 2, of("d", HALF), of("e", FAILED, RARE), of("f", MANY), of("g", HALF)) == ""
    assert fill(replay, 3) == "ecdg"  # of e one of eight completions is correct
    assert fill(replay, 4) == "bfa"


def test_a_step_is_filled_up_to_its_places() -> None:
    replay = buffer(places=3)
    fill(replay, 1, of("a", RARE), of("b", RARE), of("c", RARE))
    assert fill(replay, 2, of("d", HALF), of("e", HALF), of("f", FAILED)) == "a"
    assert fill(replay, 3, of("g", HALF), of("h", HALF), of("i", HALF)) == ""


def test_a_step_replays_at_most_its_share() -> None:
    replay = buffer(places=3, share=0.5)
    fill(replay, 1, of("a", RARE), of("b", RARE), of("c", RARE))
    assert fill(replay, 2) == "ab"


def test_a_group_leaves_at_its_age() -> None:
    for age in (1, 2, 3):
        replay = buffer(max_age=2)
        fill(replay, 5, of("a", RARE))
        for step in range(6, 5 + age):
            fill(replay, step, *(of(name, HALF) for name in "wxyz"))
        assert fill(replay, 5 + age, of("v", FAILED))[:1] == ("a" if age <= 2 else "w")


def test_a_group_is_replayed_at_most_a_number_of_times() -> None:
    replay = buffer(times=2, max_age=9)
    fill(replay, 1, of("a", RARE))
    assert [fill(replay, step) for step in (2, 3, 4)] == ["a", "a", ""]
    assert replay.state() == []


def test_a_replayed_group_has_its_step_and_number() -> None:
    replay, group = buffer(times=2), of("a", RARE)
    fill(replay, 3, group)
    fill(replay, 4)
    (again,) = replay.fill(5, [], [], lambda prompt: False)
    assert (again.group, again.step, again.times) == (group, 3, 2)


def test_a_prompt_that_the_step_has_sampled_is_not_replayed() -> None:
    replay = buffer()
    fill(replay, 1, of("a", RARE), of("b", RARE))
    assert fill(replay, 2, of("a", FAILED)) == "b"
    assert fill(replay, 3) == "a"


def test_a_newer_informative_group_replaces_that_of_its_prompt() -> None:
    replay = buffer()
    fill(replay, 1, of("a", RARE))
    newer = of("a", HALF, epoch=1)
    fill(replay, 2, newer)
    (kept,) = replay.state()
    assert (kept.group, kept.step) == (newer, 2)


def test_a_solved_prompt_is_not_replayed() -> None:
    replay = buffer()
    fill(replay, 1, of("a", RARE), of("b", RARE), of("c", RARE))
    assert fill(replay, 2, of("a", SOLVED), solved=lambda prompt: prompt.id == "b") == "c"
    assert fill(replay, 3) == ""


def test_a_prompt_that_was_rescued_is_not_solved() -> None:
    replay = buffer()
    fill(replay, 1, of("a", RARE))
    fill(replay, 2, of("a", FAILED, SOLVED))
    assert [(kept.step, success_rate(kept.group)) for kept in replay.state()] == [(2, 0.5)]


def test_groups_without_correct_and_wrong_completions_are_not_kept() -> None:
    """Other rewards than correctness may give them advantages."""
    replay = buffer()
    replay.fill(1, [of("a", SOLVED), of("b", FAILED)], [], lambda prompt: False)
    assert replay.state() == []


def test_a_group_with_log_probabilities_that_are_not_finite_is_not_kept() -> None:
    replay, attempt = buffer(), make_attempt(RARE)
    first, *others = attempt.completions
    broken = replace(first, logprobs=np.array([-0.5, math.nan], np.float32))
    fill(replay, 1, make_group(replace(attempt, completions=(broken, *others))))
    assert replay.state() == []


def test_a_step_that_ran_ahead_gives_no_groups_to_an_earlier_one() -> None:
    replay = buffer()
    fill(replay, 3, of("a", RARE))
    assert [fill(replay, 2), fill(replay, 4)] == ["", "a"]


ATTEMPTS = st.sampled_from([RARE, HALF, MANY, SOLVED, FAILED])
STEPS = st.lists(st.dictionaries(st.sampled_from("abcdefgh"), ATTEMPTS, max_size=5), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    steps=STEPS,
    places=st.integers(1, 5),
    age=st.integers(1, 4),
    times=st.integers(1, 3),
    share=st.floats(0.1, 1.0),
    cut=st.integers(0, 8),
)
def test_all_bounds_hold_and_a_restored_buffer_chooses_the_same_groups(
    steps: list[dict[str, tuple[int, ...]]], places: int, age: int, times: int, share: float, cut: int
) -> None:
    def make() -> ReplayBuffer:
        return buffer(places, max_age=age, times=times, share=share)

    replay, other = make(), make()
    replayed: Counter[Group] = Counter()
    for step, scripts in enumerate(steps, 1):
        groups = [of(name, script) for name, script in scripts.items()]
        informative = [group for group in groups if 0.0 < success_rate(group) < 1.0]
        if step == cut + 1:
            other.restore(replay.state())
        chosen = replay.fill(step, informative, groups, lambda prompt: prompt.id == "h")
        if step > cut:
            same = other.fill(step, informative, groups, lambda prompt: prompt.id == "h")
            assert [(e.group, e.step, e.times) for e in same] == [(e.group, e.step, e.times) for e in chosen]
        prompts = [each.group.prompt.id for each in chosen]
        assert len(set(prompts)) == len(prompts) <= max(0, min(math.ceil(share * places), places - len(informative)))
        assert not {*prompts} & {*scripts, "h"}
        assert all(0 < step - each.step <= age for each in chosen)
        replayed.update(each.group for each in chosen)
        assert all(replayed[each.group] == each.times <= times for each in chosen)
        assert len(replay.state()) <= sum(map(len, steps[max(0, step - age) : step]))


@pytest.mark.parametrize(("attempts", "rate"), [((RARE,), 0.25), ((FAILED, HALF), 0.25), ((SOLVED,), 1.0)])
def test_success_rate_is_over_all_attempts(attempts: tuple[Sequence[float], ...], rate: float) -> None:
    assert success_rate(of("a", *attempts)) == rate
