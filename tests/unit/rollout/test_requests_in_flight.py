"""Requests in flight on slow engines, and on engines that a prompt kills, in virtual time and without Ray."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.errors import ActorLostError, RequestLostError, RolloutError
from adagrpo_ray.rollout.member import Member, sequences_in_flight
from adagrpo_ray.rollout.members import Members
from adagrpo_ray.rollout.pool import RolloutPool
from adagrpo_ray.types import Completion, GenerationRequest, SamplingParams
from tests.support.builders import make_completion
from tests.support.loops import run_in_virtual_time

pytestmark = pytest.mark.faults

# An evaluation on a slow GPU: completions of 8,192 tokens, 16 at a time, at 550 tokens a second together.
PROMPTS, SLOTS = 300, 16
SECONDS = SLOTS * 8192 / 550
SETTINGS = RolloutSettings(max_num_seqs=SLOTS)
WHOLE_S = PROMPTS / SLOTS * SECONDS


class SlowEngine:
    """An actor that decodes `SLOTS` sequences at a time. A request for a prompt in `kills` ends it."""

    def __init__(self, kills: Sequence[str] = ()) -> None:
        self.generate = SimpleNamespace(remote=lambda request: asyncio.ensure_future(self._generate(request)))
        self.prompts: list[str] = []  # of all requests
        self.in_flight = self.most_in_flight = 0  # sequences
        self.dead = asyncio.get_running_loop().create_future()
        self.seconds = SECONDS  # that a sequence takes
        self._kills, self._slots = kills, asyncio.Semaphore(SLOTS)

    async def _generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        self.prompts.append(request.prompt_id)
        self.in_flight += request.n
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.gather(*(self._sequence(request) for _ in range(request.n)))
        finally:
            self.in_flight -= request.n
        if self.dead.done():
            raise ActorLostError("its vLLM engine died")
        return (replace(make_completion(), weight_version=0),) * request.n

    async def _sequence(self, request: GenerationRequest) -> None:
        async with self._slots:
            if request.prompt_id in self._kills and not self.dead.done():
                self.dead.set_result(None)
            await asyncio.wait({self.dead}, timeout=self.seconds)


class Replacing:
    """A pool whose lost members are replaced by engines of the same kind."""

    def __init__(self, settings: RolloutSettings = SETTINGS, kills: Sequence[str] = (), actors: int = 1) -> None:
        self.engines: list[SlowEngine] = []
        self.lost: list[str] = []
        self.notices: list[str] = []
        self._numbers, self._kills = count(), kills
        self._joining: set[asyncio.Task[None]] = set()
        self.pool = RolloutPool([], settings, self._replace, self.notices.append)
        self.pool.version = self.pool._newest = 0
        for _ in range(actors):
            self.join()

    def join(self) -> None:
        self.engines.append(SlowEngine(self._kills))
        member = Member(self.engines[-1], f"rollout actor {next(self._numbers)}")
        task = asyncio.create_task(self.pool.add(member))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def _replace(self, member: Member, reason: str) -> None:
        self.lost.append(reason)
        self.join()


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies are tasks of this process, and the clock is that of the loop."""
    monkeypatch.setattr("ray.cancel", lambda task: task.cancel())
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr("adagrpo_ray.rollout.engine_load.time", clock)
    monkeypatch.setattr("adagrpo_ray.rollout.member.time", clock)


def ask(prompt: str, n: int = 1) -> GenerationRequest:
    return GenerationRequest(prompt, np.arange(3, dtype=np.int32), n, SamplingParams(), 10, 0)


def test_an_evaluation_on_a_slow_engine_does_not_lose_it() -> None:
    async def scenario() -> None:
        replacing = Replacing()
        answers = await asyncio.gather(*(replacing.pool.generate(ask(f"p{i}")) for i in range(PROMPTS)))
        assert [len(completions) for completions in answers] == [1] * PROMPTS
        assert asyncio.get_running_loop().time() >= WHOLE_S > 2 * SETTINGS.request_timeout_s
        assert replacing.lost == []
        (engine,) = replacing.engines
        assert engine.most_in_flight == sequences_in_flight(SETTINGS) < PROMPTS
        assert engine.prompts == [f"p{i}" for i in range(PROMPTS)], "requests are sent in the order of their arrival"

    run_in_virtual_time(scenario())


def test_time_in_the_queue_of_an_engine_does_not_count() -> None:
    """All requests are in flight at once, and the last one is answered long after `request_timeout_s`."""

    async def scenario() -> None:
        replacing = Replacing(RolloutSettings(max_num_seqs=PROMPTS))
        await asyncio.gather(*(replacing.pool.generate(ask(f"p{i}")) for i in range(PROMPTS)))
        assert replacing.engines[0].most_in_flight == PROMPTS
        assert replacing.lost == []

    run_in_virtual_time(scenario())


def test_an_engine_that_stops_answering_is_lost_with_all_its_requests() -> None:
    async def scenario() -> str:
        engine, lost = SlowEngine(), asyncio.get_running_loop().create_future()
        pool = RolloutPool([engine], SETTINGS, lambda member, reason: lost.set_result(reason))
        pool.version = pool._newest = 0
        await asyncio.gather(*(pool.generate(ask(f"answered {number}")) for number in range(40)))
        answered_at = asyncio.get_running_loop().time()
        engine.seconds = 1e9
        waiting = [asyncio.create_task(pool.generate(ask(f"hung {number}"))) for number in range(100)]
        reason = str(await lost)
        assert asyncio.get_running_loop().time() == pytest.approx(answered_at + SETTINGS.request_timeout_s)
        assert len(pool.members) == 0
        await pool.add(Member(SlowEngine(), "another one"))
        await asyncio.gather(*waiting)
        return reason

    expected = "rollout actor 0 finished no request for rollout.request_timeout_s=1800 s (prompt hung"
    assert expected in run_in_virtual_time(scenario())


def test_a_member_that_joins_gets_requests_that_wait() -> None:
    async def scenario() -> None:
        replacing = Replacing()
        waiting = [asyncio.create_task(replacing.pool.generate(ask(f"p{i}"))) for i in range(PROMPTS)]
        await asyncio.sleep(SECONDS / 2)
        replacing.join()
        await asyncio.gather(*waiting)
        first, second = (len(engine.prompts) for engine in replacing.engines)
        assert min(first, second) > PROMPTS / 3

    run_in_virtual_time(scenario())


def test_a_group_larger_than_the_bound_is_sent_to_an_idle_member() -> None:
    async def scenario() -> None:
        settings = RolloutSettings(max_num_seqs=1)
        replacing, large = Replacing(settings), 3 * sequences_in_flight(settings)
        answers = await asyncio.gather(*(replacing.pool.generate(ask(f"p{i}", large)) for i in range(3)))
        assert [len(completions) for completions in answers] == [large] * 3
        assert replacing.engines[0].most_in_flight == large

    run_in_virtual_time(scenario())


def test_a_cancelled_request_leaves_its_turn_to_the_next() -> None:
    async def scenario() -> None:
        settings = RolloutSettings(max_num_seqs=1)
        replacing, sent = Replacing(settings), sequences_in_flight(settings)
        waiting = [asyncio.create_task(replacing.pool.generate(ask(f"p{i}"))) for i in range(20)]
        await asyncio.sleep(SECONDS / 2)
        assert len(replacing.engines[0].prompts) == sent
        for task in waiting[sent : sent + 3]:  # the one whose turn it is, and the next ones
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [i for i, r in enumerate(results) if isinstance(r, asyncio.CancelledError)] == [sent, sent + 1, sent + 2]
        assert replacing.engines[0].prompts == [f"p{i}" for i in range(20) if not sent <= i < sent + 3]

    run_in_virtual_time(scenario())


def test_a_request_with_a_low_limit_keeps_one_member_from_others() -> None:
    """The others get requests meanwhile; if the kept one leaves, another one is kept."""

    async def scenario() -> None:
        first, second = Member(None, "first", outstanding=3, sequences=3), Member(None, "second", outstanding=4)
        members = Members([first, second], limit=SLOTS, lost=lambda member, reason: None)
        second.sequences = 4
        alone = asyncio.create_task(members.next(1))
        also_alone = asyncio.create_task(members.next(1))
        await asyncio.sleep(1)
        assert first.kept
        assert not second.kept
        assert await members.next(SLOTS) is second
        first.sequences = 2  # one ended
        members.replied()
        await asyncio.sleep(1)
        assert not alone.done()
        assert await members.next(SLOTS) is second
        members.remove(first, "died")
        await asyncio.sleep(1)
        assert second.kept
        usual = asyncio.create_task(members.next(SLOTS))
        await asyncio.sleep(1)
        assert not alone.done()
        assert not usual.done()
        second.sequences = 0
        members.replied()
        assert await alone is second
        assert await also_alone is second, "no request was sent to it here"
        assert await usual is second

    run_in_virtual_time(scenario())


def test_a_cancelled_request_with_a_low_limit_keeps_no_member() -> None:
    async def scenario() -> None:
        busy = Member(None, "busy", sequences=3)
        members = Members([busy], limit=SLOTS, lost=None)
        alone = asyncio.create_task(members.next(1))
        usual = asyncio.create_task(members.next(SLOTS))
        await asyncio.sleep(1)
        assert not usual.done()
        alone.cancel()
        assert await usual is busy

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("actors", [1, 3])
def test_a_prompt_that_kills_engines_is_given_up_and_no_other(actors: int) -> None:
    async def scenario() -> Replacing:
        replacing = Replacing(kills=["p17"], actors=actors)
        requests = [ask(f"p{i}") for i in range(PROMPTS)]
        results = await asyncio.gather(*map(replacing.pool.generate, requests), return_exceptions=True)
        failed = {i: result for i, result in enumerate(results) if isinstance(result, BaseException)}
        assert list(failed) == [17]
        assert isinstance(failed[17], RequestLostError)
        assert "prompt p17 is given up: 4 rollout actors were lost while they ran it" in str(failed[17])
        with pytest.raises(RequestLostError, match="prompt p17 is given up"):
            await replacing.pool.generate(ask("p17"))
        await replacing.pool.generate(ask("p18"))
        return replacing

    replacing = run_in_virtual_time(scenario())
    assert len(replacing.lost) == 4
    assert len(replacing.notices) == 1, "it is reported once"
    assert "prompt p17 is given up" in replacing.notices[0]
    assert Counter(prompt for engine in replacing.engines for prompt in engine.prompts)["p17"] == 4


def test_two_prompts_that_kill_engines_take_no_other_along() -> None:
    async def scenario() -> Replacing:
        replacing = Replacing(kills=["p3", "p4"])
        requests = [ask(f"p{i}", n=4) for i in range(20)]
        results = await asyncio.gather(*map(replacing.pool.generate, requests), return_exceptions=True)
        failed = {i: type(result) for i, result in enumerate(results) if isinstance(result, BaseException)}
        assert failed == {3: RequestLostError, 4: RequestLostError}
        return replacing

    replacing = run_in_virtual_time(scenario())
    assert 4 <= len(replacing.lost) <= 8
    assert len(replacing.notices) == 2


def test_requests_that_wait_raise_if_the_last_member_is_lost() -> None:
    async def scenario() -> None:
        pool = RolloutPool([SlowEngine(kills=["p0"])], RolloutSettings(max_num_seqs=1))
        pool.version = pool._newest = 0
        results = await asyncio.gather(*(pool.generate(ask(f"p{i}")) for i in range(20)), return_exceptions=True)
        assert {str(result) for result in results} == {"its vLLM engine died"}
        assert all(isinstance(result, RolloutError) for result in results)

    run_in_virtual_time(scenario())
