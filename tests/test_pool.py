"""Routing of requests over rollout actors, with actors that answer when the test says so."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from adagrpo_ray.errors import RolloutError, SyncError
from adagrpo_ray.rollout.pool import RolloutPool
from adagrpo_ray.types import Completion, GenerationRequest, SamplingParams
from tests.builders import make_completion


class FakeActor:
    """Keeps its requests open until `answer`."""

    def __init__(self) -> None:
        self.open: list[asyncio.Future[tuple[Completion, ...]]] = []
        self.generate = SimpleNamespace(remote=self._generate)

    def _generate(self, request: GenerationRequest) -> asyncio.Future[tuple[Completion, ...]]:
        self.open.append(asyncio.get_running_loop().create_future())
        return self.open[-1]

    def answer(self, version: int = 0) -> None:
        self.open.pop(0).set_result((replace(make_completion(), weight_version=version),))


def ask(n: int = 1) -> GenerationRequest:
    return GenerationRequest("p", np.arange(3, dtype=np.int32), n, SamplingParams(), 10, 0)


def make_pool(actors: list[FakeActor], timeout: float = 5.0) -> RolloutPool:
    pool = RolloutPool(actors, timeout)
    pool.version = 0
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


def test_an_answer_under_another_version_is_refused() -> None:
    async def scenario() -> None:
        actor = FakeActor()
        waiting = asyncio.create_task(make_pool([actor]).generate(ask()))
        await asyncio.sleep(0)
        actor.answer(version=3)
        await waiting

    with pytest.raises(SyncError, match="version"):
        asyncio.run(scenario())


def test_an_actor_that_never_answers_is_an_error_and_no_hang() -> None:
    with pytest.raises(RolloutError, match=r"no answer for prompt p.*request_timeout_s"):
        asyncio.run(make_pool([FakeActor()], timeout=0.05).generate(ask()))
