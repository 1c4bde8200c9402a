"""Rollout actors with real engines that die, leave and join while requests are in flight, on a Ray cluster of nodes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from adagrpo_ray.adapter import AdapterWeights, pack
from adagrpo_ray.config import Config, load_config
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.errors import ModelError, ResourceError, RolloutError
from adagrpo_ray.model.files import ModelFiles
from adagrpo_ray.model.load import load_policy, load_tokenizer, resolve_model
from adagrpo_ray.placement import Hardware, place
from adagrpo_ray.rollout.fleet import Fleet
from adagrpo_ray.rollout.pool import Member
from adagrpo_ray.types import Completion, GenerationRequest, SamplingParams
from tests.faults import drain

SETTINGS = [
    "data.train_prompts=16",
    "data.held_out_prompts=0",
    "rollout.start_timeout_s=120",
]


STALL_TIMEOUT_S = 8  # much longer than a step takes on a busy machine


def configure(*overrides: str) -> Config:
    return load_config("launch/configs/tiny-cpu.yaml", [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def model_path() -> str:
    return resolve_model(configure())


@pytest.fixture(scope="module")
def requests(model_path: str) -> list[GenerationRequest]:
    prompts = load_prompts(configure(), load_tokenizer(model_path, configure())).train
    return [GenerationRequest(p.id, p.token_ids, 8, SamplingParams(), 96, seed) for seed, p in enumerate(prompts)]


@pytest.fixture(scope="module")
def weights(model_path: str) -> Callable[[int], AdapterWeights]:
    """A version with noise of its own, so that an actor with another one draws other tokens."""
    parameters = load_policy(model_path, configure()).named_parameters()
    names = {n.replace(".default.", "."): p.shape for n, p in parameters if p.requires_grad}

    def make(version: int) -> AdapterWeights:
        noise = torch.Generator().manual_seed(version)
        tensors = {name: 0.05 * torch.randn(shape, generator=noise) for name, shape in names.items()}
        return pack(version, tensors, 16, 32.0, torch.float32)

    return make


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, and one node for one rollout actor; tests add others and take them away again."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=1, resources={"spot": 1})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@asynccontextmanager
async def running(config: Config, model_path: str) -> AsyncIterator[Fleet]:
    placement = place(config, Hardware(3, 0), ours=True)
    fleet = Fleet(config, placement, ModelFiles(model_path), 256)
    await fleet.open()
    try:
        yield fleet
    finally:
        await fleet.close()


async def draw(fleet: Fleet, requests: list[GenerationRequest]) -> list[list[int]]:
    """The tokens of all requests' completions, in order."""

    def tokens(completions: tuple[Completion, ...]) -> list[int]:
        return [int(t) for c in completions for t in c.token_ids]

    return [tokens(c) for c in await asyncio.gather(*(fleet.pool.generate(request) for request in requests))]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.05)


def engines() -> list[psutil.Process]:
    """vLLM's engine processes that rollout actors of this process's cluster have."""
    mine = psutil.Process(os.getpid()).children(recursive=True)
    return [p for p in mine if p.status() != psutil.STATUS_ZOMBIE and "EngineCore" in " ".join(p.cmdline())]


def test_what_dies_is_replaced_and_its_requests_give_the_same_tokens_elsewhere(
    cluster: Cluster,
    model_path: str,
    requests: list[GenerationRequest],
    weights: Callable[[int], AdapterWeights],
) -> None:
    async def scenario() -> None:
        limits = "rollout.max_restarts=3", f"rollout.stall_timeout_s={STALL_TIMEOUT_S}"
        async with running(configure("rollout.actors=2", *limits), model_path) as fleet:
            await fleet.ready()
            await fleet.pool.apply(weights(1))
            expected = await draw(fleet, requests)

            engine = engines()[0]  # now, for it takes a while to find them
            drawing = asyncio.create_task(draw(fleet, requests))  # an engine's process is killed
            await until(lambda: any(m.outstanding for m in fleet.pool.members))
            engine.send_signal(signal.SIGKILL)
            assert await drawing == expected
            assert fleet.restarts == 1
            await until(lambda: len(fleet.pool.members) == 2)
            assert await draw(fleet, requests) == expected, "the new one has version 1 too"

            await fleet.pool.apply(weights(2))
            other = await draw(fleet, requests)
            assert other != expected
            engine = engines()[0]
            actor = engine.parent()
            drawing = asyncio.create_task(draw(fleet, requests))  # an actor's process is killed
            await until(lambda: any(m.outstanding for m in fleet.pool.members))
            actor.send_signal(signal.SIGKILL)
            assert await drawing == other
            assert fleet.restarts == 2
            await until(lambda: engine not in engines())
            assert sum("another one starts" in notice for notice in fleet.notices()) == 2

            await until(lambda: len(fleet.pool.members) == 2)
            engine = engines()[0]
            drawing = asyncio.create_task(draw(fleet, requests))  # an engine hangs
            await until(lambda: any(m.outstanding for m in fleet.pool.members))
            engine.send_signal(signal.SIGSTOP)
            assert await drawing == other
            assert fleet.restarts == 3
            await until(lambda: engine not in engines())
            told = f"engine did no step for rollout.stall_timeout_s={STALL_TIMEOUT_S} s"
            assert any(told in notice for notice in fleet.notices())

            await until(lambda: len(fleet.pool.members) == 2)
            left = engines()
            drawing = asyncio.create_task(draw(fleet, requests))  # and all that are left, when no more may start
            await until(lambda: any(m.outstanding for m in fleet.pool.members))
            for engine in left:
                engine.send_signal(signal.SIGKILL)
            with pytest.raises(RolloutError, match=r"engine died.*rollout\.max_restarts=3 are used up"):
                await drawing
        assert engines() == []

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_node_that_drains_is_left_and_one_that_joins_gets_work_and_weights(
    cluster: Cluster,
    model_path: str,
    requests: list[GenerationRequest],
    weights: Callable[[int], AdapterWeights],
) -> None:
    async def scenario() -> None:
        config = configure("rollout.actors=1", "rollout.max_actors=2", "rollout.resources={spot: 1}")
        async with running(config, model_path) as fleet:
            await fleet.ready()
            await fleet.pool.apply(weights(1))
            expected = await draw(fleet, requests)
            (first,) = fleet.pool.members
            added = cluster.add_node(num_cpus=1, resources={"spot": 1})
            await until(lambda: len(fleet.pool.members) == 2)
            (newcomer,) = set(fleet.pool.members) - {first}
            assert newcomer.node == added.node_id
            assert await draw(fleet, requests) == expected

            drawing = asyncio.create_task(draw(fleet, requests))
            await until(lambda: newcomer.outstanding)
            drain(cluster, added.node_id)
            await until(lambda: newcomer not in fleet.pool.members)
            assert await drawing == expected
            cluster.remove_node(added)
            assert await draw(fleet, requests) == expected
            assert fleet.restarts == 0, "who leaves with a node is not one that died"
            assert any("drains" in notice for notice in fleet.notices())

    asyncio.run(scenario())


def test_what_cannot_start_says_why_at_once(cluster: Cluster) -> None:
    async def scenario(folder: str, *overrides: str) -> None:
        async with running(configure(*overrides), folder) as fleet:
            await fleet.ready()

    with pytest.raises(ModelError, match=r"model\.path='/no/such/model' is no folder on node"):
        asyncio.run(scenario("/no/such/model"))
    with pytest.raises(ResourceError, match=r"0 of rollout\.actors=1 .* 1 found no node with room"):
        asyncio.run(scenario("/no/such/model", "rollout.resources={other: 1}", "rollout.start_timeout_s=1"))


def test_a_run_whose_actors_all_died_in_their_start_ends_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not wait for rollout.start_timeout_s."""

    async def gone(self: Fleet, member: Member) -> None:
        self._members.discard(member)

    monkeypatch.setattr(Fleet, "_end", gone)

    async def scenario() -> None:
        fleet = Fleet(configure("rollout.max_restarts=0"), None, None, 8)  # type: ignore[arg-type]
        fleet._lost(Member(None, "rollout actor 0"), "rollout actor 0: its vLLM engine died (out of memory)")
        with pytest.raises(RolloutError, match=r"^rollout actor 0: .*\(out of memory\), no other is left, and"):
            await asyncio.wait_for(fleet.ready(), timeout=20)

    asyncio.run(scenario())
