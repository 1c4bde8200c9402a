"""The rollout actors of a run: started, replaced where they are lost, let go where their node drains."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ActorLostError, AdaGRPOError, ResourceError, RolloutError
from adagrpo_ray.rollout.actor import RolloutActor
from adagrpo_ray.rollout.gauges import RolloutGauges
from adagrpo_ray.rollout.member import Member
from adagrpo_ray.rollout.pool import RolloutPool
from adagrpo_ray.runs.records import RolloutLoad

MAX_REQUESTS = 4096  # that one rollout actor may have in flight
STOP_TIMEOUT_S = 10.0
WATCH_INTERVAL_S = 1.0


class Fleet:
    """Keeps rollout actors at work in its `pool`. All of it belongs to one event loop.

    It asks Ray for `rollout.max_actors` of them. Those that the cluster has no room for wait in Ray's queue, where the
    autoscaler sees them, and join when a node comes: they get the newest weights, then requests. One on a node that
    drains gets no more requests, ends what it has, and is asked for again elsewhere. One that is lost is replaced, up
    to `rollout.max_restarts` times in a run.
    """

    def __init__(self, config: Config, placement: Placement, model: Any, max_model_len: int) -> None:
        self.pool = RolloutPool([], config.rollout.request_timeout_s, config.rollout.stall_timeout_s, self._lost)
        self.restarts = 0
        self._config, self._placement = config, placement
        self._start = (model, max_model_len, config)  # what an actor starts with; `model` may be Ray's reference
        self._wanted = config.rollout.max_actors or config.rollout.actors
        self._count = 0  # of actors ever asked for, which is the next one's number
        self._gauges = RolloutGauges(config.run.name)
        self._members: set[Member] = set()  # asked for and not ended, in the pool or not
        self._tasks: set[asyncio.Task[None]] = set()
        self._notices: deque[str] = deque()
        self._failure: AdaGRPOError | None = None
        self._idle_since = math.inf  # when the pool was found empty

    async def open(self) -> None:
        """Ask for all actors; returns at once."""
        for _ in range(self._wanted):
            self._employ()
        self._spawn(self._watch())

    async def ready(self) -> None:
        """Wait until `rollout.actors` are at work. Raises what an actor raised that could not start, and ResourceError
        where they are not there in time."""
        wanted, limit = self._config.rollout.actors, self._config.rollout.start_timeout_s
        began = time.monotonic()
        while len(self.pool.members) < wanted:
            if self._failure is not None:
                raise self._failure
            if time.monotonic() - began > limit:
                waiting = sum(not member.node for member in self._members)
                raise ResourceError(
                    f"{len(self.pool.members)} of rollout.actors={wanted} started within rollout.start_timeout_s="
                    f"{limit:g} s, {waiting} found no node with room; wait for other jobs to end, lower rollout.actors "
                    "or raise rollout.start_timeout_s"
                )
            await asyncio.sleep(0.05)

    def notices(self) -> tuple[str, ...]:
        """What has happened to actors since the last call."""
        told = tuple(self._notices)
        self._notices.clear()
        return told

    async def close(self) -> None:
        """Let every actor end its engine's processes, then end the actors."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(member) for member in tuple(self._members)))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _employ(self) -> None:
        """Ask Ray for one more actor."""
        placement, number = self._placement, self._count
        self._count += 1
        actor = (
            ray.remote(RolloutActor)
            .options(
                num_cpus=placement.rollout_cpus,
                num_gpus=placement.rollout_gpus,
                resources=dict(placement.rollout_resources),
                max_concurrency=MAX_REQUESTS,
                scheduling_strategy="SPREAD",
            )
            .remote()
        )
        member = Member(actor, f"rollout actor {number}")
        self._members.add(member)
        self._spawn(self._bring_up(member, first=number < self._config.rollout.actors))

    async def _bring_up(self, member: Member, first: bool) -> None:
        """Start an actor and put it to work; where it cannot start, another one takes its place."""
        limit = self._config.rollout.start_timeout_s
        try:
            member.node = await member.answer(member.actor.node.remote())  # waits for room
            async with asyncio.timeout(limit):
                await member.answer(member.actor.start.remote(*self._start, member.name))
                await self.pool.add(member)
        except TimeoutError:
            await self._end(member)
            self._replace(f"{member.name} did not start within rollout.start_timeout_s={limit:g} s")
        except ActorLostError as error:
            await self._end(member)
            self._replace(str(error))
        except AdaGRPOError as error:
            await self._end(member)
            if first:  # a mistake in the settings, most likely: it would come again
                self._failure = error
                await self.pool.close(str(error))
            else:
                self._replace(f"{member.name} could not start: {error}")
        else:
            if not first:
                self._notices.append(f"{member.name} joined, {len(self.pool.members)} are at work")

    def _lost(self, member: Member, reason: str) -> None:
        """The pool has lost it."""
        self._members.discard(member)
        self._spawn(self._end(member))
        self._replace(reason)

    def _replace(self, reason: str) -> None:
        limit, left = self._config.rollout.max_restarts, len(self.pool.members)
        if self.restarts < limit:
            self.restarts += 1
            self._notices.append(f"{reason}; another one starts ({self.restarts} of rollout.max_restarts={limit})")
            self._employ()
            return
        self._notices.append(f"{reason}; rollout.max_restarts={limit} are used up, {left} are left")
        if not self._members:
            self._failure = RolloutError(f"{reason}, no other is left, and rollout.max_restarts={limit} are used up")
            self._spawn(self.pool.close(str(self._failure)))

    async def _end(self, member: Member) -> None:
        """End an actor that takes no more requests."""
        self._members.discard(member)
        if member.node:
            with suppress(TimeoutError, RayError):  # it may be dead, hang, or never have started its engine
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await member.actor.stop.remote()
        ray.kill(member.actor)

    async def _watch(self) -> None:
        """Look after nodes that drain, and after a pool that stays empty; show how much there is to do."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for member in self.pool.members:
                load = RolloutLoad(outstanding_tokens=member.outstanding, outstanding_requests=member.requests)
                self._gauges.show(member.name, load)
            draining = await asyncio.to_thread(draining_nodes)
            for member in self.pool.members:
                if member.node in draining:
                    self._spawn(self._let_go(member))
            await self._bound_idleness()

    async def _let_go(self, member: Member) -> None:
        self._notices.append(f"{member.name} leaves with its node, which drains; another one is asked for")
        self._employ()
        await self.pool.drain(member)
        await self._end(member)

    async def _bound_idleness(self) -> None:
        limit = self._config.rollout.start_timeout_s
        if self.pool.members:
            self._idle_since = math.inf
            return
        self._idle_since = min(self._idle_since, time.monotonic())
        if time.monotonic() - self._idle_since > limit:
            await self.pool.close(f"no rollout actor was at work for rollout.start_timeout_s={limit:g} s")


def draining_nodes() -> set[str]:
    """The ids of nodes that Ray is about to take away: an autoscaler's idle ones, a cloud's preempted ones."""
    from ray._private.state import state  # where Ray Train looks, too: there is no public way

    return set(state.get_draining_nodes())
