"""Routing of requests to rollout actors, with actors that answer when the test lets them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayError

from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.errors import RequestLostError, RolloutError, SyncError
from adagrpo_ray.lora.payload import AdapterWeights, pack
from adagrpo_ray.rollout.engine import SyncReceipt
from adagrpo_ray.rollout.member import Member
from adagrpo_ray.rollout.pool import RolloutPool
from adagrpo_ray.types import Completion, GenerationRequest, SamplingParams
from tests.support.builders import make_completion

pytestmark = pytest.mark.faults


class FakeActor:
    """Keeps its requests open until `answer`."""

    def __init__(self) -> None:
        self.open: list[asyncio.Future[tuple[Completion, ...]]] = []
        self.apply: Any = None
        self.generate = SimpleNamespace(remote=self._generate)

    def _generate(self, request: GenerationRequest) -> asyncio.Future[tuple[Completion, ...]]:
        self.open.append(asyncio.get_running_loop().create_future())
        return self.open[-1]

    def answer(self, version: int = 0) -> None:
        self.open.pop(0).set_result((replace(make_completion(), weight_version=version),))


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The requests that the pool cancelled; here they are not references of Ray."""
    given_up: list[object] = []
    monkeypatch.setattr("ray.cancel", given_up.append)
    return given_up


def ask(n: int = 1) -> GenerationRequest:
    return GenerationRequest("p", np.arange(3, dtype=np.int32), n, SamplingParams(), 10, 0)


def limits(request_timeout_s: float = 5.0, stall_timeout_s: float = 5.0) -> RolloutSettings:
    return RolloutSettings(request_timeout_s=request_timeout_s, stall_timeout_s=stall_timeout_s)


def make_pool(actors: list[FakeActor], timeout: float = 5.0) -> RolloutPool:
    pool = RolloutPool(actors, limits(timeout, timeout))
    pool.version = pool._newest = 0
    return pool


def test_the_least_loaded_actor_gets_the_next_request() -> None:
    async def scenario() -> list[list[int]]:
        actors, loads = [FakeActor(), FakeActor()], []
        pool = make_pool(actors)
        waiting = []
        for request in (ask(8), ask(1), ask(1)):  # the second actor has less to do, even with two requests
            waiting.append(asyncio.create_task(pool.generate(request)))
            await asyncio.sleep(0)
            loads.append([len(actor.open) for actor in actors])
        actors[0].answer()
        await asyncio.sleep(0)
        await waiting[0]
        waiting.append(asyncio.create_task(pool.generate(ask(1))))  # now the first one is idle
        await asyncio.sleep(0)
        loads.append([len(actor.open) for actor in actors])
        for actor in actors:
            while actor.open:
                actor.answer()
        await asyncio.gather(*waiting)
        return loads

    assert asyncio.run(scenario()) == [[1, 0], [1, 1], [1, 2], [1, 2]]


def test_completions_of_another_version_are_refused() -> None:
    async def scenario() -> None:
        actor = FakeActor()
        waiting = asyncio.create_task(make_pool([actor]).generate(ask()))
        await asyncio.sleep(0)
        actor.answer(version=3)
        await waiting

    with pytest.raises(SyncError, match="version"):
        asyncio.run(scenario())


def test_a_request_may_end_under_any_version_in_effect_since_it_was_sent() -> None:
    async def scenario(answered: int) -> None:
        actor = FakeActor()
        pool = make_pool([actor])
        pool.version = pool._newest = 2
        waiting = asyncio.create_task(pool.generate(ask()))
        await asyncio.sleep(0)
        pool._newest = 3  # a sync that not all actors have answered yet
        actor.answer(version=answered)
        await waiting

    for version in (2, 3):
        asyncio.run(scenario(version))
    for version in (1, 4):
        with pytest.raises(SyncError, match=rf"version .{version}."):
            asyncio.run(scenario(version))


def test_an_actor_that_never_answers_raises_an_error(cancelled: list[object]) -> None:
    with pytest.raises(RolloutError, match=r"finished no request for rollout\.request_timeout_s=0\.05 s \(prompt p"):
        asyncio.run(make_pool([FakeActor()], timeout=0.05).generate(ask()))
    assert len(cancelled) == 1


def test_a_cancelled_request_is_cancelled_on_its_actor(cancelled: list[object]) -> None:
    async def scenario() -> list[int]:
        actor = FakeActor()
        pool = make_pool([actor])
        waiting = asyncio.create_task(pool.generate(ask()))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return [member.outstanding for member in pool.members]

    assert asyncio.run(scenario()) == [0]
    assert len(cancelled) == 1


def test_a_request_that_cannot_be_sent_takes_no_room() -> None:
    def refuse(request: GenerationRequest) -> None:
        raise ConnectionError("Ray does not take it")

    async def scenario() -> None:
        actor = FakeActor()
        pool, works = make_pool([actor]), actor.generate
        actor.generate = SimpleNamespace(remote=refuse)
        with pytest.raises(ConnectionError, match="Ray does not take it"):
            await pool.generate(ask(8))
        (member,) = pool.members
        assert (member.outstanding, member.sequences, member.limits) == (0, 0, [])
        actor.generate = works
        waiting = asyncio.create_task(pool.generate(ask()))
        await asyncio.sleep(0)
        actor.answer()
        assert len(await waiting) == 1

    asyncio.run(scenario())


def test_completions_after_a_wake_are_refused_until_a_version_is_applied() -> None:
    async def scenario() -> None:
        actor = FakeActor()
        for method in ("sleep", "wake"):
            setattr(actor, method, SimpleNamespace(remote=lambda: asyncio.sleep(0)))
        pool = make_pool([actor])
        await pool.sleep()
        await pool.wake()
        waiting = asyncio.create_task(pool.generate(ask()))
        await asyncio.sleep(0)
        actor.answer(version=0)
        await waiting

    with pytest.raises(SyncError, match="version"):
        asyncio.run(scenario())


class Dead:
    """A reference to the reply of an actor that died, which raises `error`."""

    def __init__(self, error: RayError) -> None:
        self._error = error

    def __await__(self) -> Generator[Any, None, None]:
        yield from asyncio.sleep(0).__await__()
        raise self._error


@pytest.mark.parametrize(
    "error",
    [RayActorError(), OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")],
    ids=["died", "killed for its memory"],
)
def test_requests_of_a_dead_actor_go_to_another_one(error: RayError) -> None:
    async def scenario() -> list[str]:
        dead, alive, lost = FakeActor(), FakeActor(), list[str]()
        dead.generate = SimpleNamespace(remote=lambda request: Dead(error))
        pool = RolloutPool([dead, alive], limits(), lambda member, reason: lost.append(f"{member.name}: {reason}"))
        pool.version = pool._newest = 0
        waiting = [asyncio.create_task(pool.generate(ask())) for _ in range(2)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert [m.name for m in pool.members] == ["rollout actor 1"]
        assert [len(actor.open) for actor in (dead, alive)] == [0, 2]
        alive.answer()
        alive.answer()
        await asyncio.gather(*waiting)
        return lost

    (lost,) = asyncio.run(scenario())
    assert lost.startswith("rollout actor 0: rollout actor 0 died")


def test_an_error_of_ray_that_is_no_death_is_an_error_of_this_library() -> None:
    async def scenario() -> None:
        await Member(None, "rollout actor 0").answer(Dead(ObjectLostError("f" * 56, None, "")))

    with pytest.raises(RolloutError, match="rollout actor 0 failed: ObjectLostError: "):
        asyncio.run(scenario())


def test_a_prompt_that_was_given_up_is_sent_again_in_the_next_run() -> None:
    async def scenario() -> None:
        dead, alive = [FakeActor() for _ in range(4)], FakeActor()
        for actor in dead:
            actor.generate = SimpleNamespace(remote=lambda request: Dead(RayActorError()))
        pool = RolloutPool(dead, limits(), lambda member, reason: None)
        pool.version = pool._newest = 0
        for _ in range(2):
            with pytest.raises(RequestLostError, match="prompt p is given up"):
                await pool.generate(ask())
        pool.end_run()
        await pool.add(Member(alive, "a new one"))
        waiting = asyncio.create_task(pool.generate(ask()))
        for _ in range(5):
            await asyncio.sleep(0)
        alive.answer()
        assert len(await waiting) == 1

    asyncio.run(scenario())


def test_requests_wait_for_a_member_and_raise_if_none_will_join() -> None:
    async def scenario() -> None:
        pool, actor = RolloutPool([], limits(), lambda member, reason: None), FakeActor()
        pool.version = pool._newest = 0
        waiting = asyncio.create_task(pool.generate(ask()))
        await asyncio.sleep(0)
        await pool.add(Member(actor, "a new one"))
        for _ in range(5):
            await asyncio.sleep(0)
        actor.answer()
        await waiting
        await pool.members.drain(next(iter(pool.members)))
        waiting = asyncio.create_task(pool.generate(ask()))
        await asyncio.sleep(0)
        pool.members.close("the cluster is gone")
        with pytest.raises(RolloutError, match="the cluster is gone"):
            await waiting

    asyncio.run(scenario())


def test_a_drained_member_finishes_its_requests_and_gets_no_more() -> None:
    async def scenario() -> None:
        pool, actor = RolloutPool([], limits(), lambda member, reason: None), FakeActor()
        pool.version = pool._newest = 0
        member = Member(actor, "a member")
        await pool.add(member)
        waiting = asyncio.create_task(pool.generate(ask()))
        while not actor.open:
            await asyncio.sleep(0)
        draining = asyncio.create_task(pool.members.drain(member))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not draining.done()
        assert len(pool.members) == 0
        actor.answer()
        await waiting
        await draining

    asyncio.run(scenario())


def test_a_member_that_hangs_while_it_gets_new_weights_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.put", lambda weights: weights)
    weights = pack(1, {f"layer.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}, 16, 32.0, torch.float32)

    async def take(weights: AdapterWeights) -> SyncReceipt:
        return SyncReceipt(weights.version, weights.digest)

    async def scenario() -> list[str]:
        hung, alive, lost = FakeActor(), FakeActor(), list[str]()
        hung.apply = SimpleNamespace(remote=lambda weights: asyncio.get_running_loop().create_future())
        alive.apply = SimpleNamespace(remote=take)
        pool = RolloutPool([hung, alive], limits(stall_timeout_s=0.05), lambda member, reason: lost.append(reason))
        assert [receipt.version for receipt in await pool.apply(weights)] == [1]
        assert [member.name for member in pool.members] == ["rollout actor 1"]
        return lost

    (reason,) = asyncio.run(scenario())
    assert "rollout actor 0 did not apply version 1 within rollout.stall_timeout_s" in reason


@pytest.mark.parametrize(("method", "task"), [("sleep", "release its GPU"), ("wake", "wake on its GPU")])
def test_a_member_that_hangs_in_sleep_or_wake_is_lost(method: str, task: str) -> None:
    async def scenario() -> list[str]:
        hung, alive, lost = FakeActor(), FakeActor(), list[str]()
        setattr(hung, method, SimpleNamespace(remote=lambda: asyncio.get_running_loop().create_future()))
        setattr(alive, method, SimpleNamespace(remote=lambda: asyncio.sleep(0)))
        pool = RolloutPool([hung, alive], limits(stall_timeout_s=0.05), lambda member, reason: lost.append(reason))
        await getattr(pool, method)()
        assert [member.name for member in pool.members] == ["rollout actor 1"]
        return lost

    (reason,) = asyncio.run(scenario())
    assert f"rollout actor 0 did not {task} within rollout.stall_timeout_s" in reason
