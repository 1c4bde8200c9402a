"""The rollout actors of a run: starts them, replaces lost ones, and releases those whose node drains."""

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
from adagrpo_ray.rollout.member import Member, sequences_in_flight
from adagrpo_ray.rollout.pool import RolloutPool
from adagrpo_ray.runs.records import RolloutLoad

STOP_TIMEOUT_S = 10.0
WATCH_INTERVAL_S = 1.0


class Fleet:
    """Keeps the rollout actors of its `pool` running. All of it belongs to one event loop.

    - It requests `rollout.max_actors` actors from Ray. Actors without a free node wait in Ray's queue, which the
      autoscaler reads. Once they have a node, they get the newest weights, and then requests.
    - An actor on a node that drains gets no new requests and finishes those in flight. Another one is requested.
    - A lost actor is replaced, up to `rollout.max_restarts` times in a run.
    """

    def __init__(
        self, config: Config, placement: Placement, model: Any, max_model_len: int, home: str | None = None
    ) -> None:
        """`home`: the run folder, a path or URL, for the logs of vLLM; None for none."""
        self._notices: deque[str] = deque()
        self.pool = RolloutPool([], config.rollout, self._lost, self._notices.append)
        self.restarts = 0
        self._config, self._placement = config, placement
        self._start = (model, max_model_len, config)  # arguments of `RolloutActor.start`; `model` may be a reference
        self._home = home
        self._wanted = config.rollout.max_actors or config.rollout.actors
        self._count = 0  # of actors ever requested, which is the number of the next one
        self._gauges = RolloutGauges(config.run.name)
        self._members: set[Member] = set()  # requested and not ended, in the pool or not
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: AdaGRPOError | None = None
        self._idle_since = math.inf  # when the pool was found empty

    async def open(self) -> None:
        """Request all actors, and return at once."""
        for _ in range(self._wanted):
            self._request()
        self._spawn(self._watch())

    async def ready(self) -> None:
        """Wait until `rollout.actors` actors are running.

        Raises the error of an actor that could not start, and ResourceError if they are not running in time.
        """
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
        """The events of actors since the last call."""
        notices = tuple(self._notices)
        self._notices.clear()
        return notices

    async def end_run(self) -> None:
        """End a run: its restarts and given-up prompts do not count in the next one on the same actors."""
        self.restarts = 0
        self.pool.end_run()

    async def close(self) -> None:
        """End the engine processes of every actor, then the actors."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(member) for member in tuple(self._members)))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _request(self) -> None:
        """Request one more actor from Ray."""
        placement, number = self._placement, self._count
        self._count += 1
        actor = (
            ray.remote(RolloutActor)
            .options(
                num_cpus=placement.rollout_cpus,
                num_gpus=placement.rollout_gpus,
                resources=dict(placement.rollout_resources),
                # Of calls: requests in flight, as many that are being cancelled, and other methods.
                max_concurrency=2 * sequences_in_flight(self._config.rollout) + 8,
                scheduling_strategy="SPREAD",
            )
            .remote()
        )
        member = Member(actor, f"rollout actor {number}")
        self._members.add(member)
        self._spawn(self._start_member(member, first=number < self._config.rollout.actors))

    async def _start_member(self, member: Member, first: bool) -> None:
        """Start an actor and add it to the pool; if it cannot start, replace it."""
        limit = self._config.rollout.start_timeout_s
        try:
            member.node = await member.answer(member.actor.node.remote())  # waits for room
            async with asyncio.timeout(limit):
                await member.answer(member.actor.start.remote(*self._start, member.name, self._home))
                await self.pool.add(member)
        except TimeoutError:
            await self._end(member)
            self._replace(f"{member.name} did not start within rollout.start_timeout_s={limit:g} s")
        except ActorLostError as error:
            await self._end(member)
            self._replace(str(error))
        except AdaGRPOError as error:
            await self._end(member)
            if first:  # most likely a mistake in the settings, which would fail again
                self._failure = error
                self.pool.members.close(str(error))
            else:
                self._replace(f"{member.name} could not start: {error}")
        else:
            if not first:
                self._notices.append(f"{member.name} joined, {len(self.pool.members)} are running")

    def _lost(self, member: Member, reason: str) -> None:
        """Replace a member that the pool has lost."""
        self._members.discard(member)
        self._spawn(self._end(member))
        self._replace(reason)

    def _replace(self, reason: str) -> None:
        limit, left = self._config.rollout.max_restarts, len(self.pool.members)
        if self.restarts < limit:
            self.restarts += 1
            self._notices.append(f"{reason}; starting another one ({self.restarts} of rollout.max_restarts={limit})")
            self._request()
            return
        self._notices.append(f"{reason}; rollout.max_restarts={limit} are used up, {left} are left")
        if not self._members:
            self._failure = RolloutError(f"{reason}, no other is left, and rollout.max_restarts={limit} are used up")
            self.pool.members.close(str(self._failure))

    async def _end(self, member: Member) -> None:
        """End an actor that gets no more requests."""
        self._members.discard(member)
        if member.node:
            with suppress(TimeoutError, RayError):  # it may be dead or hang, or its engine may not have started
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await member.actor.stop.remote()
        ray.kill(member.actor)

    async def _watch(self) -> None:
        """Report the load, release actors on nodes that drain, and close a pool that stays empty."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for member in self.pool.members:
                load = RolloutLoad(outstanding_tokens=member.outstanding, outstanding_requests=member.requests)
                self._gauges.show(member.name, load)
            draining = await asyncio.to_thread(draining_nodes)
            for member in self.pool.members:
                if member.node in draining:
                    self._spawn(self._release(member))
            self._check_empty()

    async def _release(self, member: Member) -> None:
        self._notices.append(f"{member.name} stops because its node drains; requesting another one")
        self._request()
        await self.pool.members.drain(member)
        await self._end(member)

    def _check_empty(self) -> None:
        limit = self._config.rollout.start_timeout_s
        if self.pool.members:
            self._idle_since = math.inf
            return
        self._idle_since = min(self._idle_since, time.monotonic())
        if time.monotonic() - self._idle_since > limit:
            self.pool.members.close(f"no rollout actor was running for rollout.start_timeout_s={limit:g} s")


def draining_nodes() -> set[str]:
    """The ids of nodes that Ray is about to remove: idle ones of an autoscaler, and preempted ones of a cloud."""
    from ray._private.state import state  # Ray Train uses it, too: there is no public way

    return set(state.get_draining_nodes())
