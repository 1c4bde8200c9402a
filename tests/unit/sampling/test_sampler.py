"""The adaptive sampler over a fake engine and scorer: the groups that it resamples, with their time and parameters."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrpo_ray.algorithm.criterion import any_correct
from adagrpo_ray.algorithm.ladder import Ladder, request_seed
from adagrpo_ray.algorithm.methods import Method, make_method
from adagrpo_ray.algorithm.own_ladder import OwnLadder
from adagrpo_ray.algorithm.statistics import statistics_of
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.errors import RewardError
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import Completion, GenerationRequest, Group, Prompt, SamplingParams
from tests.support.builders import make_prompt
from tests.support.loops import run
from tests.support.rollouts import LIMIT, Rollouts, scripted

BASE, WARM, HOT = SamplingParams(temperature=1.0), SamplingParams(temperature=1.1), SamplingParams(temperature=1.3)
TWO_RUNGS = ((1, (WARM, HOT)),)
FAIL, PASS = (0.0, 0.0), (1.0, 0.0)
UNSCORED = (math.nan, math.nan)
SEED = 7


class Fake(Rollouts):
    """Engine and scorer, whose k-th request for a prompt gets the k-th row of its script, or its last row.

    A request for twice as many completions as a row has gets the row twice. A request with a gate waits until the gate
    is set.
    """

    def __init__(self, script: Mapping[str, Sequence[Sequence[float]]]) -> None:
        super().__init__(self._row)
        self.script = script
        self.cancelled: list[str] = []
        self.gates: dict[tuple[str, int], asyncio.Event] = {}
        self.length = 2
        self.given_up: set[str] = set()  # prompts that kill engines

    def _row(self, request: GenerationRequest, number: int) -> Sequence[float] | None:
        if request.prompt_id in self.given_up:
            return None
        row = scripted(self.script)(request, number)
        return None if row is None else (*row, *row)[: request.n]

    async def _wait(self, request: GenerationRequest, number: int) -> None:
        try:
            await super()._wait(request, number)
            if (request.prompt_id, number) in self.gates:
                await self.gates[request.prompt_id, number].wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.prompt_id)
            raise


def easy(names: str) -> dict[str, list[tuple[float, float]]]:
    """The script of prompts that are solved at once."""
    return {name: [PASS] for name in names}


def make_sampler(
    fake: Fake,
    *,
    prompts: Sequence[str],
    ladder: Ladder | None = None,
    method: Method | None = None,
    difficulties: Mapping[str, str] | None = None,
    drop_failed: bool = True,
    **settings: object,
) -> AdaptiveSampler:
    """A sampler of groups of two that takes `prompts` in turn, by default all of them in each step."""
    chosen = AlgorithmSettings.model_validate(
        {"prompts_per_step": len(prompts), "group_size": 2, "resample": "immediate", **settings}
    )
    allocation = chosen.allocation if "allocation" in settings else None
    return AdaptiveSampler(
        chosen,
        method or Method(any_correct, ladder or Ladder(BASE, TWO_RUNGS), False, False, allocation=allocation),
        PromptOrder(
            [make_prompt(id, difficulty=(difficulties or {}).get(id, "")) for id in prompts], seed=0, shuffle=False
        ),
        fake.generate,
        fake.score,
        max_new_tokens=LIMIT,
        seed=SEED,
        drop_failed=drop_failed,
    )


def run_steps(sampler: AdaptiveSampler, steps: int) -> list[Collection]:
    async def collect() -> list[Collection]:
        return [await sampler.collect(step) for step in range(1, steps + 1)]

    return run(collect())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it never happened")


def ids(groups: Sequence[Group]) -> list[str]:
    return [g.prompt.id for g in groups]


def rungs(group: Group) -> list[int]:
    return [a.rung for a in group.attempts]


def test_only_a_failing_group_climbs_the_ladder() -> None:
    fake = Fake({"easy": [PASS], "hard": [FAIL, FAIL, PASS], "other": [PASS]})
    (step,) = run_steps(make_sampler(fake, prompts=["easy", "hard", "other"]), 1)
    assert [r.sampling for r in fake.of("hard")] == [BASE, WARM, HOT]
    assert [r.sampling for r in fake.of("easy") + fake.of("other")] == [BASE, BASE]
    assert ids(step.ready) == ["easy", "hard", "other"]
    assert [rungs(g) for g in step.ready] == [[-1], [-1, 0, 1], [-1]]
    assert step.exhausted == step.waiting == step.aged == ()


def test_a_request_has_all_that_the_engine_needs() -> None:
    fake = Fake({"hard": [FAIL, PASS]})
    run_steps(make_sampler(fake, prompts=["hard"]), 1)
    first, second = fake.requests
    assert first.prompt_token_ids.tolist() == make_prompt().token_ids.tolist()
    assert (first.n, first.max_new_tokens, first.sampling) == (2, 16, BASE)
    assert (second.n, second.max_new_tokens, second.sampling) == (2, 16, WARM)


def test_seeds_come_from_run_prompt_epoch_and_attempt() -> None:
    fake = Fake({"a": [FAIL], "b": [PASS]})
    run_steps(make_sampler(fake, prompts=["a", "b"]), 2)
    assert [r.seed for r in fake.of("a")] == [request_seed(SEED, "a", epoch, n) for epoch in (0, 1) for n in (0, 1, 2)]
    assert [r.seed for r in fake.of("b")] == [request_seed(SEED, "b", epoch, 0) for epoch in (0, 1)]
    assert len({r.seed for r in fake.requests}) == len(fake.requests) == 8


def test_a_resample_waits_for_no_other_group() -> None:
    async def scenario() -> Collection:
        fake.gates["easy", 0] = asyncio.Event()
        collecting = asyncio.create_task(make_sampler(fake, prompts=["easy", "hard"]).collect(1))
        await until(lambda: len(fake.of("hard")) == 3)  # both resamples, while the easy group still generates
        assert not collecting.done()
        fake.gates["easy", 0].set()
        return await collecting

    fake = Fake({"easy": [PASS], "hard": [FAIL, FAIL, PASS]})
    assert ids(run(scenario()).ready) == ["easy", "hard"]


def test_one_solved_group_does_not_end_the_retries_of_another() -> None:
    async def scenario() -> Collection:
        fake.gates["hard", 0] = asyncio.Event()
        collecting = asyncio.create_task(make_sampler(fake, prompts=["easy", "hard"]).collect(1))
        await until(lambda: len(fake.requests) == 2)
        for _ in range(20):  # the easy group is long solved when the hard one fails
            await asyncio.sleep(0)
        fake.gates["hard", 0].set()
        return await collecting

    fake = Fake({"easy": [PASS], "hard": [FAIL, PASS]})
    step = run(scenario())
    assert len(fake.of("hard")) == 2
    assert ids(step.ready) == ["easy", "hard"]


def test_one_failing_group_does_not_sample_a_solved_one_again() -> None:
    fake = Fake({"easy": [PASS], "hard": [FAIL]})
    run_steps(make_sampler(fake, prompts=["easy", "hard"]), 1)
    assert Counter(r.prompt_id for r in fake.requests) == {"easy": 1, "hard": 3}


def test_statistics_are_over_all_attempts_and_never_mix_prompts() -> None:
    fake = Fake({"a": [(-3.0, -1.0), (-2.0, -2.0), (8.0, 0.0)], "b": [(-9.0, -7.0), (4.0, 0.0)]})
    (step,) = run_steps(make_sampler(fake, prompts=["a", "b"]), 1)
    a, b = step.ready
    assert (statistics_of(a).count, statistics_of(a).mean) == (6, 0.0)
    assert statistics_of(a).m2 == pytest.approx(9 + 1 + 4 + 4 + 64)
    assert (statistics_of(b).count, statistics_of(b).mean) == (4, -3.0)
    assert statistics_of(b).m2 == pytest.approx(36 + 16 + 49 + 9)
    assert a.last.rewards.tolist() == [8.0, 0.0]


def test_a_new_epoch_starts_without_the_statistics_of_the_last_one() -> None:
    fake = Fake({"a": [FAIL, FAIL, FAIL, PASS]})
    first, second = run_steps(make_sampler(fake, prompts=["a"]), 2)
    assert (first.exhausted[0].epoch, statistics_of(first.exhausted[0]).count) == (0, 6)
    assert (second.ready[0].epoch, statistics_of(second.ready[0]).count, second.ready[0].born) == (1, 2, 2)


def test_results_are_in_the_order_of_the_slots() -> None:
    async def scenario() -> Collection:
        for name in "abc":
            fake.gates[name, 0] = asyncio.Event()
        collecting = asyncio.create_task(make_sampler(fake, prompts=["a", "b", "c"]).collect(1))
        await until(lambda: len(fake.requests) == 3)
        for name in "cba":
            fake.gates[name, 0].set()
            for _ in range(20):
                await asyncio.sleep(0)
        return await collecting

    fake = Fake({"a": [FAIL, PASS], "b": [PASS], "c": [PASS]})
    step = run(scenario())
    assert ids(step.ready) == ["a", "b", "c"]
    assert [(g.prompt.id, len(g.attempts)) for g in step.attempts] == [("a", 1), ("a", 2), ("b", 1), ("c", 1)]


def test_a_group_that_fails_on_the_last_rung_is_exhausted() -> None:
    fake = Fake({"hopeless": [FAIL]})
    (step,) = run_steps(make_sampler(fake, prompts=["hopeless"]), 1)
    assert ids(step.exhausted) == ["hopeless"]
    assert rungs(step.exhausted[0]) == [-1, 0, 1]
    assert step.ready == step.waiting == ()


@pytest.mark.parametrize("resample", ["immediate", "deferred"])
def test_before_the_first_trigger_a_failing_group_is_exhausted_at_once(resample: str) -> None:
    fake = Fake({"hard": [FAIL]})
    sampler = make_sampler(fake, prompts=["hard"], ladder=Ladder(BASE, ((2, (WARM,)),)), resample=resample)
    (step,) = run_steps(sampler, 1)
    assert [rungs(g) for g in step.exhausted] == [[-1]]
    assert len(fake.requests) == 1


def test_deferred_samples_one_attempt_a_step_at_the_next_rung() -> None:
    fake = Fake({"hard": [(-4.0, 0.0), (-2.0, 0.0), (2.0, 0.0)], "easy": [PASS]})
    steps = run_steps(make_sampler(fake, prompts=["hard", *["easy"] * 5], prompts_per_step=2, resample="deferred"), 3)
    assert [ids(s.waiting) for s in steps] == [["hard"], ["hard"], []]
    assert [[(g.prompt.id, g.last.rung) for g in s.attempts] for s in steps] == [
        [("hard", -1), ("easy", -1)],
        [("hard", 0), ("easy", -1)],
        [("hard", 1), ("easy", -1)],
    ]
    assert [r.sampling for r in fake.of("hard")] == [BASE, WARM, HOT]
    hard = steps[2].ready[0]
    assert (hard.born, statistics_of(hard).count) == (1, 6)
    assert statistics_of(hard).mean == pytest.approx(-4 / 6)
    assert statistics_of(hard).m2 == pytest.approx(16 + 4 + 4 - 16 / 6)


def test_deferred_groups_that_fail_on_the_last_rung_are_exhausted() -> None:
    fake = Fake({"hard": [FAIL], "easy": [PASS]})
    steps = run_steps(make_sampler(fake, prompts=["hard", *["easy"] * 5], prompts_per_step=2, resample="deferred"), 3)
    assert [ids(s.exhausted) for s in steps] == [[], [], ["hard"]]


def test_waiting_groups_take_at_most_half_of_the_slots_and_others_keep_their_order() -> None:
    fake = Fake({name: [FAIL] for name in "abcdefgh"})
    steps = run_steps(make_sampler(fake, prompts="abcdefgh", prompts_per_step=4, resample="deferred"), 3)
    assert [ids(s.attempts) for s in steps] == [list("abcd"), list("abef"), list("cdgh")]
    assert [ids(s.waiting) for s in steps] == [list("abcd"), list("cdabef"), list("abefcdgh")]


def test_an_odd_number_of_slots_leaves_the_larger_half_to_new_prompts() -> None:
    fake = Fake({name: [FAIL] for name in "abcdef"})
    _, second = run_steps(make_sampler(fake, prompts="abcdef", prompts_per_step=3, resample="deferred"), 2)
    assert ids(second.attempts) == ["a", "d", "e"]


def test_a_waiting_group_is_resumed_in_a_step_of_one_slot() -> None:
    fake = Fake({"hard": [FAIL, PASS], **easy("abcd")})
    steps = run_steps(make_sampler(fake, prompts=["hard", *"abcd"], prompts_per_step=1, resample="deferred"), 3)
    assert "hard" in [id for step in steps for id in ids(step.ready)]


def test_the_budget_pays_for_first_attempts_first_and_other_groups_continue_later() -> None:
    fake = Fake({"a": [FAIL, PASS], "b": [FAIL, PASS], **easy("cdefg")})
    first, second = run_steps(make_sampler(fake, prompts="abcdefg", prompts_per_step=4, budget=10), 2)
    # Eight for the first attempts; the ninth and tenth completion resample the group that failed first.
    assert ids(first.ready) == ["a", "c", "d"]
    assert ids(first.waiting) == ["b"]
    assert [r.sampling for r in fake.of("b")] == [BASE, WARM]
    assert ids(second.ready) == ["b", "e", "f", "g"]
    assert rungs(second.ready[0]) == [-1, 0]


def test_a_rest_of_the_budget_smaller_than_a_group_is_not_spent() -> None:
    fake = Fake({"a": [FAIL], "b": [FAIL]})
    (step,) = run_steps(make_sampler(fake, prompts="ab", budget=5), 1)
    assert len(fake.requests) == 2
    assert ids(step.waiting) == ["a", "b"]


def test_no_prompt_is_drawn_without_budget_for_it() -> None:
    fake = Fake({name: [PASS] for name in "abc"})
    first, second = run_steps(make_sampler(fake, prompts="abc", prompts_per_step=2, budget=3), 2)
    assert (ids(first.ready), ids(first.waiting)) == (["a"], [])
    assert (ids(second.ready), ids(second.waiting)) == (["b"], [])


@settings(max_examples=40)
@given(
    budget=st.none() | st.integers(2, 20),
    slots=st.integers(2, 5),
    resample=st.sampled_from(["immediate", "deferred"]),
    age=st.integers(1, 4),
    outcomes=st.lists(st.lists(st.sampled_from([FAIL, PASS]), min_size=1, max_size=6), min_size=5, max_size=5),
)
def test_every_group_ends_once_and_no_step_exceeds_its_budget(
    budget: int | None, slots: int, resample: str, age: int, outcomes: list[list[tuple[float, float]]]
) -> None:
    fake = Fake(dict(zip("abcde", outcomes, strict=True)))
    steps = run_steps(
        make_sampler(
            fake, prompts="abcde", prompts_per_step=slots, budget=budget, resample=resample, max_group_age=age
        ),
        6,
    )
    for number, step in enumerate(steps, start=1):
        assert budget is None or 2 * len(step.attempts) <= budget
        assert all(number - g.born <= age for g in (*step.ready, *step.exhausted, *step.waiting))
        sampled = Counter((g.prompt.id, g.epoch) for g in step.attempts)
        assert resample == "immediate" or max(sampled.values()) == 1
    assert sum(len(step.attempts) for step in steps) == len(fake.requests)

    ended = [*(g for s in steps for g in (*s.ready, *s.exhausted, *s.aged)), *steps[-1].waiting]
    drawn = [(g.prompt.id, g.epoch) for g in ended]
    assert sorted(drawn) == sorted(("abcde"[n % 5], n // 5) for n in range(len(drawn)))  # none twice, none lost
    for group in ended:
        assert rungs(group) == list(range(-1, len(group.attempts) - 1))
        assert statistics_of(group).count == 2 * len(group.attempts)


@settings(max_examples=40)
@given(
    budget=st.integers(32, 200),
    length=st.integers(1, 16),
    resample=st.sampled_from(["immediate", "deferred"]),
    outcomes=st.lists(st.lists(st.sampled_from([FAIL, PASS]), min_size=1, max_size=3), min_size=5, max_size=5),
)
def test_a_budget_in_tokens_holds_for_all_lengths(
    budget: int, length: int, resample: str, outcomes: list[list[tuple[float, float]]]
) -> None:
    fake = Fake(dict(zip("abcde", outcomes, strict=True)))
    fake.length = length
    sampler = make_sampler(fake, prompts="abcde", budget=budget, budget_unit="tokens", resample=resample)
    (step,) = run_steps(sampler, 1)
    assert fake.most <= budget
    assert sum(g.last.generated_tokens for g in step.attempts) <= budget


def test_unused_tokens_of_the_budget_pay_for_more_groups() -> None:
    """A group of two reserves 32 tokens and takes 4: 64 tokens have room for two groups, then for one at a time."""
    fake = Fake(easy("abcde"))
    (step,) = run_steps(make_sampler(fake, prompts="abcde", budget=64, budget_unit="tokens"), 1)
    assert ids(step.ready) == list("abcde")
    fake.length, fake.requests = 16, []
    (step,) = run_steps(make_sampler(fake, prompts="abcde", budget=64, budget_unit="tokens"), 1)
    assert ids(step.ready) == list("ab")


def test_a_group_above_the_maximum_age_is_given_up() -> None:
    fake = Fake({name: [FAIL] for name in "abcdefgh"})
    ladder = Ladder(BASE, ((1, (WARM,) * 9),))
    sampler = make_sampler(
        fake, prompts="abcdefgh", ladder=ladder, prompts_per_step=2, resample="deferred", max_group_age=2
    )
    steps = run_steps(sampler, 4)
    assert [ids(s.aged) for s in steps] == [[], [], [], ["a", "b"]]  # born in step 1; in step 4 three steps old
    assert not {"a", "b"} & {*ids(steps[3].waiting), *ids(steps[3].attempts)}


def test_a_waiting_group_uses_the_ladder_of_the_new_step() -> None:
    fake = Fake({"hard": [FAIL], "easy": [PASS]})
    ladder = Ladder(BASE, ((1, (WARM, WARM)), (2, (HOT, HOT)), (3, ())))
    sampler = make_sampler(
        fake, prompts=["hard", *["easy"] * 5], ladder=ladder, prompts_per_step=2, resample="deferred"
    )
    steps = run_steps(sampler, 3)
    assert [r.sampling for r in fake.of("hard")] == [BASE, HOT]
    assert [ids(s.exhausted) for s in steps] == [[], [], ["hard"]]  # step 3 has no rung for it
    assert ids(steps[2].attempts) == ["easy"]


class BrokenError(RuntimeError):
    """The error of the fake engine or scorer."""


@pytest.mark.parametrize("part", ["generate", "score"])
def test_an_error_is_raised_and_cancels_the_other_groups(part: str) -> None:
    async def fails(subject: GenerationRequest | Prompt, *rest: object) -> object:
        if getattr(subject, "prompt_id", getattr(subject, "id", None)) == "bad":
            raise BrokenError(part)
        return await working(subject, *rest)

    async def scenario() -> None:
        fake.gates["slow", 0] = asyncio.Event()  # is never set
        await make_sampler(fake, prompts=["slow", "bad"]).collect(1)

    fake = Fake({"slow": [PASS], "bad": [PASS]})
    working = getattr(fake, part)
    setattr(fake, part, fails)
    with pytest.raises(BrokenError, match=part):
        run(scenario())
    assert fake.cancelled == ["slow"]


def test_waiting_groups_still_wait_after_an_error() -> None:
    async def breaks(request: GenerationRequest) -> tuple[Completion, ...]:
        if broken:
            raise BrokenError
        return await working(request)

    async def scenario() -> Collection:
        sampler = make_sampler(fake, prompts=["hard", *["easy"] * 5], prompts_per_step=2, resample="deferred")
        await sampler.collect(1)
        broken.append(True)
        with pytest.raises(BrokenError):
            await sampler.collect(2)
        broken.clear()
        return await sampler.collect(3)

    broken: list[bool] = []
    fake = Fake({"hard": [FAIL, PASS], "easy": [PASS]})
    working = fake.generate
    fake.generate = breaks  # type: ignore[method-assign]
    third = run(scenario())
    assert (third.ready[0].prompt.id, rungs(third.ready[0])) == ("hard", [-1, 0])


def test_a_late_group_of_over_sampling_is_awaited_by_the_next_step() -> None:
    async def scenario() -> tuple[Collection, Collection, list[bool]]:
        fake.gates["b", 0], fake.gates["b", 1] = asyncio.Event(), asyncio.Event()  # the second is never opened...
        first = await sampler.collect(1)
        second = asyncio.create_task(sampler.collect(2))
        await until(lambda: len(fake.requests) == 6)
        for _ in range(20):
            await asyncio.sleep(0)
        waited = [not second.done()]
        fake.gates["b", 1].set()  # ... before the others of its step have long ended
        return first, await second, waited

    fake = Fake(easy("abcdef"))
    sampler = make_sampler(fake, prompts="abcdef", prompts_per_step=2, over_sample=0.5)
    first, second, waited = run(scenario())
    assert (ids(first.ready), ids(first.late), ids(first.waiting)) == (["a", "c"], ["b"], ["b"])
    assert fake.cancelled == ["b"]
    assert waited == [True]
    assert (ids(second.ready), ids(second.late)) == (["b", "d", "e"], [])
    assert not any(g.late for g in second.waiting)
    assert fake.of("b")[0] == fake.of("b")[1], "a group that was cut off asks for the same completions again"


def test_a_late_group_keeps_the_attempts_that_it_has() -> None:
    async def scenario() -> tuple[Collection, Collection]:
        fake.gates["hard", 1] = asyncio.Event()
        first = await sampler.collect(1)
        fake.gates.clear()
        return first, await sampler.collect(2)

    fake = Fake({"hard": [(-4.0, -2.0), FAIL, PASS], **easy("abcdefgh")})
    sampler = make_sampler(fake, prompts=["hard", *"abcdefgh"], prompts_per_step=2, over_sample=0.5)
    first, second = run(scenario())
    assert ids(first.late) == ["hard"]
    (hard,) = [g for g in second.ready if g.prompt.id == "hard"]
    assert (rungs(hard), statistics_of(hard).count, hard.born) == ([-1, 0], 4, 1)


def test_late_groups_do_not_take_places_of_failed_groups() -> None:
    """Of the two places after two late groups, one goes to a failed group and one to a new prompt."""

    async def scenario() -> Collection:
        for name in "bc":
            fake.gates[name, 0] = asyncio.Event()
        await sampler.collect(1)  # ends without b and c, and a has failed
        return await sampler.collect(2)

    fake = Fake({"a": [FAIL, PASS], **easy("bcdefgh")})
    sampler = make_sampler(fake, prompts="abcdefgh", prompts_per_step=2, over_sample=1.0, resample="deferred")
    second = run(scenario())
    assert ids(second.attempts) == ["b", "c", "a", "e"]


def test_a_step_that_ends_early_scores_complete_groups() -> None:
    async def scenario() -> tuple[Collection, list[bool]]:
        fake.gates["slow", 0] = asyncio.Event()  # is never set
        fake.scoring = {name: asyncio.Event() for name in ("scored", "failed")}
        collecting = asyncio.create_task(sampler.collect(1))
        await until(lambda: len(fake.requests) == 6)
        for _ in range(20):
            await asyncio.sleep(0)
        waited = [not collecting.done()]
        for gate in fake.scoring.values():
            gate.set()
        return await collecting, waited

    names = ["slow", "scored", "failed", "a", "b", "c"]
    fake = Fake({name: [FAIL if name == "failed" else PASS] for name in names})
    sampler = make_sampler(fake, prompts=names, prompts_per_step=3, over_sample=1.0)
    step, waited = run(scenario())
    assert waited == [True]
    assert fake.cancelled == ["slow"]
    assert ids(step.ready) == ["scored", "a", "b", "c"]
    assert ids(step.late) == ["slow", "failed"]
    assert len(fake.of("failed")) == 1, "the step has ended, so nothing is sampled for it again"
    assert [len(g.attempts) for g in step.late] == [0, 1]


def test_over_sampling_stays_within_the_budget() -> None:
    fake = Fake(easy("abcdef"))
    (step,) = run_steps(make_sampler(fake, prompts="abcdef", prompts_per_step=2, over_sample=1.0, budget=6), 1)
    assert len(fake.requests) == 3
    assert len(step.ready) + len(step.late) == 3


def test_concurrent_collections_do_not_share_groups() -> None:
    async def scenario() -> list[Collection]:
        await sampler.collect(1)
        fake.gates["b", 0] = asyncio.Event()
        steps = [asyncio.create_task(sampler.collect(step)) for step in (2, 3)]
        await until(steps[1].done)  # the later one ends first
        fake.gates["b", 0].set()
        return [await step for step in steps]

    fake = Fake({"hard": [FAIL, PASS], **easy("abcdefgh")})
    sampler = make_sampler(fake, prompts=["hard", "a", *"bcdefgh"], prompts_per_step=2, resample="deferred")
    fake.script = {**fake.script, "b": [FAIL], "c": [FAIL]}
    second, third = run(scenario())
    assert (ids(second.attempts), ids(third.attempts)) == (["hard", "b"], ["c", "d"])
    assert set(ids(sampler.state_dict()["waiting"])) == {"b", "c"}


def requested(requests: Sequence[GenerationRequest]) -> list[object]:
    return [(r.prompt_id, r.n, r.sampling, r.seed) for r in requests]


@pytest.mark.parametrize("end", ["cancelled", "failed"])
@pytest.mark.parametrize(
    ("resample", "rule"), [("immediate", "informative"), ("deferred", "informative"), ("deferred", "value")]
)
def test_a_cancelled_collection_restores_the_sampler(end: str, resample: str, rule: str) -> None:
    def make() -> tuple[Fake, AdaptiveSampler]:
        hopeless, script = [(0.0,) * 4], {"a": [(0.0,) * 4], "d": [(0.0,) * 4, (1.0,) * 4]}
        fake = Fake({name: hopeless if name in "be" else [(1.0, 0.0, 0.0, 0.0)] for name in "abcdefgh"} | script)
        options = {"prompts_per_step": 3, "resample": resample, "max_group_age": 1, "budget": 14}
        return fake, make_sampler(fake, prompts="abcdefgh", allocation=ALLOCATION | {"rule": rule}, **options)

    async def scenario(disturbed: bool) -> Collection:
        for step in (1, 2):
            await sampler.collect(step)
        state, fake.requests = sampler.state_dict(), []
        assert state["waiting"]
        assert state["results"]
        if disturbed:
            collecting = asyncio.create_task(sampler.collect(3))
            await until(lambda: len(fake.requests) >= 3)
            if end == "failed":
                fake.script = {}  # every request raises KeyError now
            else:
                for _ in range(3):
                    await asyncio.sleep(0)
                assert not collecting.done()
                collecting.cancel()
            with pytest.raises((KeyError, asyncio.CancelledError)):
                await collecting
            assert sampler.state_dict() == state
            fake.script, fake.requests = script, []
        return await sampler.collect(3)

    ends = []
    for disturbed in (False, True):
        fake, sampler = make()
        script = fake.script
        collection = run(scenario(disturbed))
        ends.append((requested(fake.requests), ids(collection.aged), ids(collection.ready), ids(collection.waiting)))
    assert ends[0] == ends[1]
    assert ends[0][0]


def test_a_collection_ends_once_it_is_asked_for_and_is_undone_if_it_is_cancelled_before() -> None:
    async def sampled(asked: asyncio.Event) -> tuple[asyncio.Task[Collection], list[object]]:
        fake.requests = []
        collecting = asyncio.create_task(sampler.collect(2, asked))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not collecting.done()
        return collecting, requested(fake.requests)

    async def scenario() -> None:
        await sampler.collect(1)
        state, asked = sampler.state_dict(), asyncio.Event()
        assert state["waiting"]
        assert state["results"]
        cancelled, first = await sampled(asked)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert sampler.state_dict() == state
        collecting, again = await sampled(asked)
        assert first == again != []
        asked.set()
        assert (await collecting).attempts
        assert sampler.state_dict()["results"] != state["results"]

    mixed = [(1.0, 0.0, 1.0, 0.0)]
    fake = Fake({"hard": [(0.0,) * 4], **dict.fromkeys("abcd", mixed)})
    prompts = ["hard", *"abcd"]
    sampler = make_sampler(fake, prompts=prompts, prompts_per_step=2, resample="deferred", allocation=ALLOCATION)
    run(scenario())


def test_a_cancelled_concurrent_collection_leaves_its_groups_to_the_next() -> None:
    async def scenario() -> tuple[Collection, Collection]:
        await sampler.collect(1)  # hard waits
        fake.gates["a", 0] = fake.gates["b", 0] = asyncio.Event()
        steps = [asyncio.create_task(sampler.collect(step)) for step in (2, 3)]
        await until(lambda: len(fake.requests) == 6)
        steps[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await steps[0]
        waiting = sampler.state_dict()["waiting"]
        assert [(g.prompt.id, g.late, len(g.attempts)) for g in waiting] == [("hard", False, 1), ("a", True, 0)]
        fake.gates["a", 0].set()
        return await steps[1], await sampler.collect(2)

    fake = Fake({"hard": [FAIL, PASS], **easy("xabcdefg")})
    sampler = make_sampler(fake, prompts=["hard", *"xabcdefg"], prompts_per_step=2, resample="deferred")
    third, second = run(scenario())
    assert ids(third.attempts) == ["b", "c"]
    assert ids(second.attempts) == ["a", "hard"]
    assert not second.late


def test_a_group_that_cannot_be_scored_is_the_only_one_dropped() -> None:
    fake = Fake({"good": [PASS], "bad": [UNSCORED], "hard": [FAIL, PASS]})
    sampler = make_sampler(fake, prompts=["good", "bad", "hard"], allocation=ALLOCATION)
    (step,) = run_steps(sampler, 1)
    assert ids(step.ready) == ["good", "hard"]
    assert Counter(r.prompt_id for r in fake.requests) == {"good": 1, "bad": 1, "hard": 2}
    (failure,) = step.failed
    assert (failure.group.prompt.id, failure.tokens, failure.dropped) == ("bad", 4, True)
    assert failure.error == "no score for bad"
    assert ids(step.attempts) == ["good", "hard", "hard"]
    assert step.exhausted == step.waiting == step.late == ()
    assert set(sampler.state_dict()["results"]) == {"good", "hard"}


def test_a_resample_that_cannot_be_scored_ends_its_group() -> None:
    fake = Fake({"a": [FAIL, UNSCORED], **easy("bc")})
    sampler = make_sampler(fake, prompts="abc", prompts_per_step=2, resample="deferred")
    first, second = run_steps(sampler, 2)
    assert (ids(first.waiting), first.failed) == (["a"], ())
    assert second.failed[0].group.last.rewards.tolist() == [0.0, 0.0]
    assert second.waiting == () == tuple(sampler.state_dict()["waiting"])


def test_scores_given_for_a_group_that_cannot_be_scored_are_trained_on() -> None:
    fake = Fake({"bad": [UNSCORED, UNSCORED, (1.0, 0.0)], "lost": [UNSCORED]})
    (step,) = run_steps(make_sampler(fake, prompts=["bad", "lost"], drop_failed=False), 1)
    assert [f.group.prompt.id for f in step.failed] == ["bad", "lost"]  # once each
    assert not any(f.dropped for f in step.failed)
    assert (statistics_of(step.ready[0]).count, statistics_of(step.ready[0]).mean) == (
        6,
        pytest.approx((-4 * 4 + 1) / 6),
    )
    assert step.exhausted[0].last.rewards.tolist() == [-4.0, -4.0]
    assert not step.exhausted[0].last.correct.any()


def test_a_step_without_any_score_stops_the_run_and_loses_no_group() -> None:
    fake = Fake({"a": [FAIL], "b": [UNSCORED], "c": [UNSCORED], "d": [PASS]})
    sampler = make_sampler(fake, prompts="abcd", prompts_per_step=2)
    (first,) = run_steps(sampler, 1)
    assert [f.error for f in first.failed] == ["no score for b"]
    state = sampler.state_dict()
    for prompt in "cd":
        fake.script[prompt] = [UNSCORED]
    with pytest.raises(RewardError, match="no score for c; no group of step 2 could be scored"):
        run(sampler.collect(2))
    assert sampler.state_dict() == state
    fake.script["c"] = [PASS]  # the function was mended
    assert ids(run(sampler.collect(2)).ready) == ["c"]


def test_dapo_replaces_a_group_that_cannot_be_scored() -> None:
    fake = Fake({"a": [UNSCORED], "b": [PASS], "c": [PASS]})
    (step,) = run_steps(make_sampler(fake, prompts="abc", prompts_per_step=2, method=named("dapo")), 1)
    assert ids(step.ready) == ["b", "c"]
    assert len(step.failed) == 1


def test_tokens_of_a_group_that_cannot_be_scored_count_in_the_budget() -> None:
    fake = Fake({"a": [UNSCORED], **easy("bcd")})
    fake.length = 16  # all that a group may take
    sampler = make_sampler(fake, prompts="abcd", budget=64, budget_unit="tokens")
    (step,) = run_steps(sampler, 1)
    assert (ids(step.ready), len(step.failed)) == (["b"], 1)


@pytest.mark.parametrize("drop_failed", [True, False])
def test_a_group_whose_prompt_is_given_up_is_the_only_one_dropped(drop_failed: bool) -> None:
    fake = Fake({"good": [PASS], "bad": [PASS], "hard": [FAIL, PASS]})
    fake.given_up = {"bad"}
    (step,) = run_steps(make_sampler(fake, prompts=["good", "bad", "hard"], drop_failed=drop_failed), 1)
    assert ids(step.ready) == ["good", "hard"]
    assert Counter(r.prompt_id for r in fake.requests) == {"good": 1, "bad": 1, "hard": 2}
    (failure,) = step.failed
    assert (failure.group.prompt.id, failure.tokens, failure.dropped, failure.generated) == ("bad", 0, True, False)
    assert failure.error == "prompt bad is given up"
    assert step.exhausted == step.waiting == step.late == ()


def test_a_group_that_is_given_up_after_given_scores_is_dropped_and_keeps_its_first_error() -> None:
    class GivenUpLater(Fake):
        async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
            completions = await super().generate(request)
            self.given_up.add(request.prompt_id)
            return completions

    fake = GivenUpLater({"good": [PASS], "bad": [UNSCORED]})
    (step,) = run_steps(make_sampler(fake, prompts=["good", "bad"], drop_failed=False), 1)
    assert (ids(step.ready), ids(step.attempts)) == (["good"], ["good", "bad"])
    (failure,) = step.failed
    assert (failure.tokens, failure.dropped, failure.generated) == (0, True, False)
    assert failure.error == "no score for bad"
    assert [attempt.rewards.tolist() for attempt in failure.group.attempts] == [[-4.0, -4.0]]
    assert step.exhausted == step.waiting == step.late == ()


def test_a_step_whose_prompts_are_all_given_up_is_empty() -> None:
    fake = Fake(easy("abcd"))
    fake.given_up = {"a", "b"}
    first, second = run_steps(make_sampler(fake, prompts="abcd", prompts_per_step=2), 2)
    assert (first.attempts, len(first.failed)) == ((), 2)
    assert ids(second.ready) == ["c", "d"]


def test_a_prompt_that_is_given_up_takes_nothing_from_the_budget() -> None:
    fake = Fake(easy("abcd"))
    fake.given_up, fake.length = {"a"}, 16
    (step,) = run_steps(make_sampler(fake, prompts="abcd", budget=64, budget_unit="tokens"), 1)
    assert (ids(step.ready), len(step.failed)) == (["b", "c"], 1)


def test_sampling_resumes_after_a_step_with_a_prompt_that_is_given_up() -> None:
    def made() -> tuple[Fake, AdaptiveSampler]:
        fake = Fake({"a": [FAIL, FAIL, PASS], **easy("bcdef")})
        fake.given_up = {"b"}
        return fake, make_sampler(fake, prompts="abcdef", prompts_per_step=3, resample="deferred")

    fake, sampler = made()
    run(sampler.collect(1))
    before, state = len(fake.requests), sampler.state_dict()
    run(sampler.collect(2))
    other, resumed = made()
    resumed.load_state_dict(state)
    run(resumed.collect(2))
    expected = [(r.prompt_id, r.seed, r.sampling) for r in fake.requests[before:]]
    assert "a" in {prompt for prompt, *_ in expected}
    assert [(r.prompt_id, r.seed, r.sampling) for r in other.requests] == expected


def named(name: str) -> Method:
    return make_method(AlgorithmSettings.model_validate({"name": name}), ["exact"])


def test_grpo_trains_on_every_group_after_one_attempt() -> None:
    fake = Fake({"a": [FAIL], "b": [PASS], "c": [(1.0, 1.0)]})
    (step,) = run_steps(make_sampler(fake, prompts="abc", method=named("grpo")), 1)
    assert ids(step.ready) == ["a", "b", "c"]
    assert len(fake.requests) == 3


def test_dapo_replaces_zero_std_groups_until_the_step_is_full() -> None:
    fake = Fake({"a": [FAIL], "b": [PASS], "c": [(1.0, 1.0)], "d": [PASS], "e": [FAIL], "f": [PASS], "g": [PASS]})
    (step,) = run_steps(make_sampler(fake, prompts="abcdefg", prompts_per_step=3, method=named("dapo")), 1)
    assert ids(step.ready) == ["b", "d", "f"]
    assert ids(step.exhausted) == ["a", "c", "e"]
    assert [r.prompt_id for r in fake.requests] == list("abcdef")  # two for a and c, then one for e
    assert step.waiting == ()


def test_dapo_trains_on_fewer_groups_if_the_budget_ends() -> None:
    fake = Fake({name: [FAIL] for name in "abcdef"} | {"b": [PASS]})
    (step,) = run_steps(make_sampler(fake, prompts="abcdef", prompts_per_step=3, budget=9, method=named("dapo")), 1)
    assert len(fake.requests) == 4  # of two completions each; the ninth is left unspent
    assert ids(step.ready) == ["b"]


def test_dapo_gives_up_after_ten_rounds_of_zero_std_groups() -> None:
    fake = Fake({"a": [FAIL]})
    (step,) = run_steps(make_sampler(fake, prompts="a", method=named("dapo")), 1)
    assert len(fake.requests) == 10
    assert step.ready == ()


def test_the_overlong_penalty_is_part_of_the_rewards() -> None:
    fake = Fake({"a": [PASS]})
    sampler = make_sampler(fake, prompts="a", overlong_buffer=16)  # completions have 2 of 16 tokens
    (step,) = run_steps(sampler, 1)
    assert step.ready[0].last.rewards.tolist() == pytest.approx([1 - 2 / 16, -2 / 16])
    assert step.ready[0].last.rewards_by_function.tolist() == [[1.0], [0.0]]


ALLOCATION = {
    "enabled": True, "min_group": 2, "max_group": 4, "discount": 1.0, "hard_below": 0.3, "solved_above": 0.7,
    "judge_rungs": False,
}  # fmt: skip


def test_allocation_sizes_a_group_by_its_prompts_earlier_epochs() -> None:
    fake = Fake({"mixed": [PASS], "hard": [FAIL, FAIL, FAIL, (0.0,) * 4]})
    sampler = make_sampler(fake, prompts=["mixed", "hard"], allocation=ALLOCATION | {"informative": 0.6})
    first, second = run_steps(sampler, 2)
    assert [r.n for r in fake.requests[:2]] == [2, 2]
    # mixed: Beta(2, 2) of mean 1/2 needs 3; hard: its first attempt alone counts, Beta(1, 3) of mean 1/4 needs 4.
    assert [(g.size, g.start) for g in (*second.ready, *second.exhausted)] == [(3, 0), (4, 1)]
    assert fake.of("hard")[3].sampling == WARM
    assert second.exhausted[0].attempts[0].rung == 0
    assert first.exhausted[0].attempts[0].rung == -1


@pytest.mark.parametrize("resample", ["immediate", "deferred"])
def test_failed_groups_are_sampled_again_where_the_rung_pays(resample: str) -> None:
    """Groups of `warm` succeed on the rung alone, and those of `cold` at the base alone."""
    names = [f"{kind}{n}" for n in range(60) for kind in ("warm", "cold")]
    scripts = {name: [FAIL, PASS] if name.startswith("warm") else [FAIL, FAIL] for name in names}
    scripts |= {f"cold{n}": [PASS] for n in range(0, 60, 2)}
    settings = {"prompts_per_step": 6, "max_group_age": 9, "resample": resample}
    settings["allocation"] = {"min_group": 2, "max_group": 2, "discount": 1.0, "hard_below": 0.0, "solved_above": 1.0}
    sampler = make_sampler(
        Fake(scripts), prompts=names, difficulties={name: name[:4] for name in names},
        ladder=Ladder(BASE, ((1, (WARM,)),)), **settings,
    )  # fmt: skip
    steps = run_steps(sampler, 12)
    again = Counter(group.prompt.difficulty for step in steps for group in step.attempts if group.resamples)
    given_up = Counter(group.prompt.difficulty for step in steps for group in step.exhausted if not group.resamples)
    assert again["warm"] > 3 * again["cold"] > 0
    assert given_up["cold"] > 3 * given_up["warm"]
    assert {group.prompt.difficulty for step in steps for group in step.ready if group.resamples} == {"warm"}


def test_allocation_leaves_out_solved_prompts_but_never_all() -> None:
    both, classes = (1.0, 1.0), {"solved": "easy", "other": "hard"}
    fake = Fake({"solved": [both], "other": [FAIL, FAIL, FAIL, (0.0,) * 4]})
    options = {"prompts_per_step": 1, "allocation": ALLOCATION}
    steps = run_steps(make_sampler(fake, prompts=["solved", "other"], difficulties=classes, **options), 11)
    drawn = [(group.prompt.id, group.epoch) for s in steps for group in s.attempts if len(group.attempts) == 1]
    others = [[("other", epoch) for epoch in epochs] for epochs in (range(4), range(4, 8))]
    # The SHA-256 of "7/solved" begins with 8 bytes that are 0 modulo 4, so its turns are the epochs 0, 4 and 8.
    assert drawn == [("solved", 0), *others[0], ("solved", 4), *others[1], ("solved", 8)]
    assert [s.skipped for s in steps] == [0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0]
    assert not any(s.left_out for s in steps)
    alone = make_sampler(Fake({"solved": [both]}), prompts=["solved"], allocation=ALLOCATION)
    assert [ids(s.ready) for s in run_steps(alone, 3)] == [["solved"]] * 3


@pytest.mark.parametrize(("over_sample", "places"), [(0.0, 4), (0.5, 6)])
def test_a_step_has_fewer_groups_if_prompts_that_are_left_out_are_not_replaced(over_sample: float, places: int) -> None:
    names = [f"{kind}{n}" for n in range(10) for kind in ("solved", "other")]
    scripts = {name: [(1.0, 1.0)] * 3 if name.startswith("solved") else [PASS] * 3 for name in names}
    classes = {name: name[:5] for name in names}
    options = {"prompts_per_step": 4, "over_sample": over_sample, "criterion": {"kind": "any_correct"}}
    allocation = ALLOCATION | {"max_group": 2, "replace_left_out": False, "solved_above": 0.7}
    steps = run_steps(
        make_sampler(Fake(scripts), prompts=names, difficulties=classes, allocation=allocation, **options), 9
    )
    for step in steps:
        assert 4 - step.skipped <= len(step.attempts) <= places - step.skipped
        assert step.left_out == step.skipped
    assert sum(step.skipped for step in steps) > 5


def test_by_value_a_step_takes_no_more_prompts_than_it_has_places() -> None:
    names = [f"{kind}{n}" for n in range(10) for kind in ("solved", "other")]
    scripts = {name: [(1.0, 1.0)] * 3 if name.startswith("solved") else [PASS] * 3 for name in names}
    allocation = ALLOCATION | {"rule": "value", "max_group": 2, "replace_left_out": False}
    classes = {name: name[:5] for name in names}
    sampler = make_sampler(
        Fake(scripts), prompts=names, difficulties=classes, allocation=allocation, prompts_per_step=4
    )
    left_out = 0
    for step in range(1, 10):
        collection = run(sampler.collect(step))
        assert len(collection.attempts) + collection.left_out == 4
        assert (sampler.allocator.position.taken, sampler.allocator.position.planned) == (4 * step, ())
        left_out += collection.left_out
    assert left_out > 5


def test_a_collection_that_begins_again_leaves_out_the_same_prompts() -> None:
    names = [f"{kind}{n}" for n in range(10) for kind in ("solved", "other")]
    scripts = {name: [(1.0, 1.0)] * 3 if name.startswith("solved") else [PASS] * 3 for name in names}
    allocation = ALLOCATION | {"max_group": 2, "replace_left_out": False}
    classes = {name: name[:5] for name in names}

    async def steps(disturbed: bool) -> list[tuple[list[str], int, int]]:
        sampler = make_sampler(
            Fake(scripts), prompts=names, difficulties=classes, allocation=allocation, prompts_per_step=4
        )
        found = []
        for step in range(1, 10):
            if disturbed:
                collecting = asyncio.create_task(sampler.collect(step))
                await asyncio.sleep(0)  # it has drawn its groups
                collecting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await collecting
            collection = await sampler.collect(step)
            found.append((ids(collection.attempts), collection.left_out, collection.skipped))
        return found

    undisturbed = run(steps(disturbed=False))
    assert run(steps(disturbed=True)) == undisturbed
    assert sum(left_out for _, left_out, _ in undisturbed) > 5


def test_a_step_has_at_least_one_group_if_all_prompts_are_solved() -> None:
    names = [f"p{n}" for n in range(12)]
    fake = Fake({name: [(1.0, 1.0)] * 9 for name in names})
    allocation = ALLOCATION | {"max_group": 2, "replace_left_out": False}
    steps = run_steps(make_sampler(fake, prompts=names, allocation=allocation, prompts_per_step=2), 8)
    assert all(step.ready for step in steps)
    assert [len(step.ready) for step in steps].count(1) > 3
    assert max(step.left_out for step in steps) == 1


@pytest.mark.parametrize(
    ("ladder", "rungs_of_second"),
    [
        (Ladder(BASE), [-1]),
        (OwnLadder(BASE, ladder=lambda group, step: (BASE, WARM, None)[len(group.attempts)], name="mine"), [-1, 0]),
    ],
)
def test_a_group_that_starts_on_a_missing_rung_starts_at_the_base(ladder: Ladder, rungs_of_second: list[int]) -> None:
    """No rung is there before the first trigger, and a ladder of the user's own has none that could be known."""
    fake = Fake({"hard": [(0.0,) * 4]})
    _, second = run_steps(make_sampler(fake, prompts=["hard"], ladder=ladder, allocation=ALLOCATION), 2)
    (group,) = second.exhausted
    assert (group.size, group.start, rungs(group)) == (4, 0, rungs_of_second)
    assert [attempt.sampling for attempt in group.attempts] == [BASE, WARM][: len(rungs_of_second)]


def test_a_new_prompt_uses_the_posterior_of_its_difficulty_class() -> None:
    difficulties = {"a": "hard", "b": "hard", "c": "easy", "d": "easy"}
    fake = Fake({"a": [FAIL], "b": [(0.0,) * 4], "c": [PASS], "d": [PASS]})
    sampler = make_sampler(
        fake, prompts="acbd", difficulties=difficulties, prompts_per_step=2, ladder=Ladder(BASE, ((1, (WARM,)),)),
        allocation=ALLOCATION | {"informative": 0.5},
    )  # fmt: skip
    _, second = run_steps(sampler, 2)
    # hard: Beta(1, 3) of mean 1/4, so it starts on the rung; easy: Beta(2, 2), which two completions are enough for.
    assert [(g.prompt.id, g.size, g.start) for g in (*second.exhausted, *second.ready)] == [("b", 3, 1), ("d", 2, 0)]


@pytest.mark.parametrize(
    ("resample", "rule"), [("immediate", "informative"), ("deferred", "informative"), ("deferred", "value")]
)
def test_a_restored_sampler_continues_identically(resample: str, rule: str) -> None:
    def make() -> tuple[Fake, AdaptiveSampler]:
        fake = Fake({"a": [FAIL, FAIL, PASS, (0.0,) * 4], "b": [PASS, (1.0,) * 4], "c": [FAIL, (1.0, 0.0, 0.0, 0.0)]})
        allocation = ALLOCATION | {"rule": rule}
        settings = {"budget": 8, "prompts_per_step": 2, "resample": resample, "allocation": allocation}
        return fake, make_sampler(fake, prompts="abc", **settings)

    async def collect(sampler: AdaptiveSampler, first: int, last: int) -> list[Collection]:
        return [await sampler.collect(step) for step in range(first, last + 1)]

    fake, sampler = make()
    run(collect(sampler, 1, 2))
    state, before = sampler.state_dict(), len(fake.requests)
    assert state["results"]
    assert state["waiting"], "the budget cuts off the second resample, or it is deferred"
    other_fake, other = make()
    other_fake.requests = list(fake.requests)  # so that its script continues at the same place as the other one
    other.load_state_dict(state)
    ends, other_ends = run(collect(sampler, 3, 6)), run(collect(other, 3, 6))
    assert len(fake.requests) > before

    assert requested(fake.requests) == requested(other_fake.requests)
    assert [[statistics_of(g) for g in c.ready] for c in ends] == [
        [statistics_of(g) for g in c.ready] for c in other_ends
    ]
