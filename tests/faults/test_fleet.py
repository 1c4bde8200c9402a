"""Rollout actors with real engines that die, drain and join while requests are in flight, on a Ray cluster of nodes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from adagrpo_ray.cluster.placement import Hardware, place
from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.errors import ModelError, RequestLostError, ResourceError, RolloutError
from adagrpo_ray.lora.payload import AdapterWeights, pack
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.model.pretrained import load_tokenizer
from adagrpo_ray.rollout.actor import RolloutActor
from adagrpo_ray.rollout.fleet import Fleet
from adagrpo_ray.rollout.member import Member
from adagrpo_ray.types import Completion, GenerationRequest, SamplingParams
from tests.support.faults import drain
from tests.support.held import PATIENCE_S, engines

pytestmark = pytest.mark.long

SETTINGS = [
    "data.train_prompts=16",
    "data.eval_prompts=0",
]

Task = asyncio.Future[list[list[list[int]]]]
STALL_TIMEOUT_S = 8  # much longer than a step takes on a busy machine


def configure(*overrides: str) -> Config:
    return Config.load("launch/configs/tiny-cpu.yaml", [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def requests(model_path: str) -> list[GenerationRequest]:
    config = configure()
    prompts = load_prompts(config, load_tokenizer(model_path, config.model, config.data)).train
    return [GenerationRequest(p.id, p.token_ids, 8, SamplingParams(), 96, seed) for seed, p in enumerate(prompts)]


@pytest.fixture(scope="module")
def weights(model_path: str) -> Callable[[int], AdapterWeights]:
    """Versions with different noise, so that an actor with another version draws other tokens."""
    parameters = load_policy(model_path, configure()).named_parameters()
    names = {n.replace(".default.", "."): p.shape for n, p in parameters if p.requires_grad}

    def make(version: int) -> AdapterWeights:
        noise = torch.Generator().manual_seed(version)
        tensors = {name: 0.05 * torch.randn(shape, generator=noise) for name, shape in names.items()}
        return pack(version, tensors, 16, 32.0, torch.float32)

    return make


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, and one node for one rollout actor; tests add other nodes and remove them."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=1, resources={"spot": 1})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@asynccontextmanager
async def running(config: Config, model_path: str) -> AsyncIterator[Fleet]:
    placement = place(config.rollout, config.learner, Hardware(3, 0), ours=True)
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


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while not (value := condition()):
            await asyncio.sleep(0.05)
        return value


async def both_engines(fleet: Fleet) -> list[psutil.Process]:
    """The engines of two rollout actors, once both are running."""
    await until(lambda: len(fleet.pool.members) == 2)
    found: list[psutil.Process] = await until(lambda: there if len(there := engines()) == 2 else None)
    return found


async def held(fleet: Fleet, requests: list[GenerationRequest], stopped: list[psutil.Process]) -> Task:
    """Draw the requests twice, with these engines stopped before the second time.

    The first requests may be in any state when the engines stop. The second ones cannot end: the pool sends some of
    them to every member, and a stopped engine answers none.
    """
    first = asyncio.create_task(draw(fleet, requests))
    await until(lambda: all(member.outstanding for member in fleet.pool.members))
    for engine in stopped:
        engine.suspend()
    second = asyncio.create_task(draw(fleet, requests))
    for _ in range(10):  # its tasks begin in the second turn of the event loop, and send before they wait for anything
        await asyncio.sleep(0)
    assert all(member.outstanding for member in fleet.pool.members)
    return asyncio.gather(first, second)


@pytest.mark.timeout(900)
def test_a_dead_actor_is_replaced_and_its_requests_give_the_same_tokens(
    cluster: Cluster,
    model_path: str,
    requests: list[GenerationRequest],
    weights: Callable[[int], AdapterWeights],
) -> None:
    async def scenario() -> None:
        limits = "rollout.max_restarts=2", f"rollout.stall_timeout_s={STALL_TIMEOUT_S}"
        async with running(configure("rollout.actors=2", *limits), model_path) as fleet:
            await fleet.ready()
            await fleet.pool.apply(weights(1))
            expected = await draw(fleet, requests)

            dies, hangs = await both_engines(fleet)
            drawing = await held(fleet, requests, [dies, hangs])
            dies.kill()
            assert await drawing == [expected, expected], "the actors that replace them have version 1, too"
            assert fleet.restarts == 2
            await until(lambda: not {dies, hangs} & set(engines()))
            notices = fleet.notices()
            assert sum("starting another one" in notice for notice in notices) == 2
            stalled = f"engine did no step for rollout.stall_timeout_s={STALL_TIMEOUT_S} s"
            # On a busy machine the one that was stopped and then killed may be found stalled, too.
            assert sum(stalled in notice for notice in notices) >= 1

            await until(lambda: len(fleet.pool.members) == 2)
            await fleet.pool.apply(weights(2))
            other = await draw(fleet, requests)
            assert other != expected
            engine, last = await both_engines(fleet)
            actor = engine.parent()
            assert actor is not None
            drawing = await held(fleet, requests, [engine])
            actor.kill()
            assert await drawing == [other, other], "the remaining actor has version 2, too"
            assert fleet.restarts == 2
            await until(lambda: engine not in engines())
            assert any("max_restarts=2 are used up, 1 are left" in notice for notice in fleet.notices())

            drawing = await held(fleet, requests, [last])
            last.kill()
            with pytest.raises(RolloutError, match=r"engine died.*rollout\.max_restarts=2 are used up"):
                await drawing
        await until(lambda: not engines())

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_draining_node_is_released_and_a_new_node_gets_weights_and_requests(
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

            (engine,) = engines(added.all_processes["raylet"][0].process.pid)
            drawing = await held(fleet, requests, [engine])
            drain(cluster, added.node_id)
            await until(lambda: newcomer not in fleet.pool.members)
            assert newcomer.outstanding, "it finishes its requests"
            engine.resume()
            assert await drawing == [expected, expected]
            cluster.remove_node(added)
            assert await draw(fleet, requests) == expected
            assert fleet.restarts == 0, "an actor of a drained node does not count as lost"
            assert any("drains" in notice for notice in fleet.notices())

    asyncio.run(scenario())


@pytest.mark.slow  # it starts five engines, three minutes
@pytest.mark.timeout(900)
def test_a_prompt_that_kills_its_engine_is_given_up(
    cluster: Cluster,
    model_path: str,
    requests: list[GenerationRequest],
    weights: Callable[[int], AdapterWeights],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other requests, which are in flight at the same time, give the same tokens as without it.

    It is given up in this run only: in the next one shorter completions of it are generated.
    """
    deadly, others = requests[3], [*requests[:3], *requests[4:]]
    prompt, short = deadly.prompt_id, replace(deadly, max_new_tokens=8)

    class Fragile(RolloutActor):  # here, so that Ray sends the class itself
        async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
            kills = request.prompt_id == prompt and request.max_new_tokens > 8
            for child in psutil.Process().children() if kills else ():
                if any(mark in " ".join([child.name(), *child.cmdline()]) for mark in ("EngineCor", "spawn_main")):
                    child.kill()
            return await super().generate(request)

    monkeypatch.setattr("adagrpo_ray.rollout.fleet.RolloutActor", Fragile)

    async def scenario() -> None:
        async with running(configure("rollout.actors=2", "rollout.max_restarts=6"), model_path) as fleet:
            await fleet.ready()
            await fleet.pool.apply(weights(1))
            expected = await draw(fleet, others)
            lost = asyncio.create_task(fleet.pool.generate(deadly))
            assert await draw(fleet, others) == expected
            with pytest.raises(RequestLostError, match=f"prompt {re.escape(prompt)} is given up: 4 rollout"):
                await lost
            assert fleet.restarts == 4
            notices = fleet.notices()
            assert sum("is given up" in notice for notice in notices) == 1
            assert sum("its vLLM engine died" in notice and "starting another" in notice for notice in notices) == 4
            assert await draw(fleet, others) == expected
            with pytest.raises(RequestLostError):
                await fleet.pool.generate(short)
            await fleet.end_run()
            assert fleet.restarts == 0
            assert len(await fleet.pool.generate(short)) == short.n
        await until(lambda: not engines())

    asyncio.run(scenario())


def test_actors_that_cannot_start_raise_the_cause_at_once(cluster: Cluster) -> None:
    async def scenario(folder: str, *overrides: str) -> None:
        async with running(configure(*overrides), folder) as fleet:
            await fleet.ready()

    with pytest.raises(ModelError, match=r"model\.path='/no/such/model' is no folder on node"):
        asyncio.run(scenario("/no/such/model"))
    with pytest.raises(ResourceError, match=r"0 of rollout\.actors=1 .* 1 found no node with room"):
        asyncio.run(scenario("/no/such/model", "rollout.resources={other: 1}", "rollout.start_timeout_s=1"))


def test_a_run_whose_actors_all_die_during_their_start_ends_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for rollout.start_timeout_s."""

    async def gone(self: Fleet, member: Member) -> None:
        self._members.discard(member)

    monkeypatch.setattr(Fleet, "_end", gone)

    async def scenario() -> None:
        fleet = Fleet(configure("rollout.max_restarts=0"), None, None, 8)  # type: ignore[arg-type]
        fleet._lost(Member(None, "rollout actor 0"), "rollout actor 0: its vLLM engine died (out of memory)")
        with pytest.raises(RolloutError, match=r"^rollout actor 0: .*\(out of memory\), no other is left, and"):
            await asyncio.wait_for(fleet.ready(), timeout=20)

    asyncio.run(scenario())
