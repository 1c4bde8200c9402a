"""Several rollout actors behind one `generate`: routes each request to the least loaded, and again if it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import ray

from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.errors import ActorLostError, RolloutError, SyncError
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.rollout.engine import SyncReceipt
from adagrpo_ray.rollout.member import Member, sequences_in_flight
from adagrpo_ray.rollout.tries import Tries
from adagrpo_ray.types import Completion, GenerationRequest

Lost = Callable[[Member, str], None]


class RolloutPool:
    """Routes requests to its members. Belongs to one event loop; not shared between threads.

    Requests wait here, in the order of their arrival, until a member has room. So they go to the member that is free
    first, and a member that joins gets its share.

    A member leaves the pool if it dies, hangs or loses its engine. Then `lost` is called, and its requests go to other
    members with the same seeds. Without a member, requests wait until one is added. They raise an error if none will be
    added: if `lost` is None, and after `close`.

    A prompt whose requests lose one member after another is given up (`Tries`): `notify` is called, and this and later
    requests of the prompt raise RequestLostError.
    """

    def __init__(
        self,
        actors: Iterable[Any],
        settings: RolloutSettings,
        lost: Lost | None = None,
        notify: Callable[[str], None] = lambda notice: None,
    ) -> None:
        self._members = [Member(actor, f"rollout actor {number}") for number, actor in enumerate(actors)]
        self._request_timeout, self._stall_timeout = settings.request_timeout_s, settings.stall_timeout_s
        self._lost, self._tries = lost, Tries(sequences_in_flight(settings), notify)
        self._closed: str | None = None if lost else "there is no rollout actor"  # the reason why none will join
        self._turn = asyncio.Lock()  # of the request that is sent next
        self._changed = asyncio.Event()  # whether members or their room may have changed
        self._sent: tuple[Any, AdapterWeights] | None = None  # the newest version: a reference to it, and itself
        self.version = -1  # in effect on all members
        self._newest = -1  # in effect on some members, while it is being applied

    @property
    def members(self) -> tuple[Member, ...]:
        """The members that take requests."""
        return tuple(self._members)

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Generate the completions of the request on the member with the fewest outstanding tokens that has room.

        If that member is lost, another one gets the request. If the caller is cancelled, the actor aborts the request.
        Raises RequestLostError if the prompt is given up, RolloutError if no member is left, SyncError if a member used
        a version that was not in effect meanwhile, and the engine's own errors.
        """
        reason = ""
        for limit in self._tries.limits:
            self._tries.check(request.prompt_id)
            member = await self._next_member(limit)
            oldest = self.version
            try:
                completions = await self._send(member, request, limit)
            except ActorLostError as error:
                reason = str(error)
                self._remove(member, reason)
                continue
            wrong = {c.weight_version for c in completions if not oldest <= c.weight_version <= self._newest}
            if wrong:
                raise SyncError(f"{member.name} used version {wrong}, but the pool is at {self.version}")
            return completions
        self._tries.give_up(request.prompt_id, reason)

    async def add(self, member: Member) -> None:
        """Apply the newest version to a member, then let it take requests. Raises ActorLostError if it is lost."""
        held = None
        while held is not self._sent:
            held = self._sent
            if held is not None:
                await member.apply(*held, self._stall_timeout)
        self._members.append(member)
        self._changed.set()

    async def drain(self, member: Member) -> None:
        """Stop sending requests to a member; returns when it has none in flight."""
        if member in self._members:
            self._members.remove(member)
        await self._until(lambda: not member.requests)

    async def close(self, reason: str) -> None:
        """Declare that no member will join: once there is none left, requests raise RolloutError with `reason`."""
        self._closed = reason
        self._changed.set()

    async def apply(self, weights: AdapterWeights) -> list[SyncReceipt]:
        """Apply a version of the adapter on all members; its tensors go into the object store once.

        Returns when every member has read back the learner's digest. A member that is lost meanwhile leaves the pool.
        Raises SyncError if a member reads back another digest.
        """
        reference, self._newest = ray.put(weights), weights.version
        self._sent = (reference, weights)
        receipts: list[SyncReceipt] = await self._all(lambda m: m.apply(reference, weights, self._stall_timeout))
        self.version = weights.version
        return receipts

    async def sleep(self) -> None:
        """Put all members to sleep, without requests in flight. A member that is lost meanwhile leaves the pool."""
        await self._all(lambda m: m.in_time(m.actor.sleep.remote(), self._stall_timeout, "release its GPU"))

    async def wake(self) -> None:
        """Wake all members; a version must be applied before they generate again."""
        await self._all(lambda m: m.in_time(m.actor.wake.remote(), self._stall_timeout, "wake on its GPU"))
        self.version = self._newest = -1  # so that no completion is accepted before
        self._sent = None

    async def _all(self, work: Callable[[Member], Awaitable[Any]]) -> list[Any]:
        """Do `work` on all members concurrently; returns the results. A member that is lost meanwhile has none."""
        members = self.members
        results = await asyncio.gather(*(work(member) for member in members), return_exceptions=True)
        for member, result in zip(members, results, strict=True):
            if isinstance(result, ActorLostError):
                self._remove(member, str(result))
            elif isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]

    async def _next_member(self, limit: int) -> Member:
        """Wait for the turn of a request with this limit, and for a member with room for it.

        The caller has to send the request before it waits for anything else.
        """
        async with self._turn:
            await self._until(lambda: self._with_room(limit) or (self._closed is not None and not self._members))
        if not self._members:
            raise RolloutError(str(self._closed))
        return min(self._with_room(limit), key=lambda member: member.outstanding)

    def _with_room(self, limit: int) -> list[Member]:
        return [member for member in self._members if member.has_room(limit)]

    async def _send(self, member: Member, request: GenerationRequest, limit: int) -> tuple[Completion, ...]:
        try:
            return await member.generate(request, limit, self._request_timeout)
        finally:
            self._changed.set()

    def _remove(self, member: Member, reason: str) -> None:
        """Remove a lost member, once, even if several requests notice the loss."""
        if member not in self._members:
            return
        self._members.remove(member)
        if self._lost is not None:
            self._lost(member, reason)
        elif not self._members:
            self._closed = reason
        self._changed.set()

    async def _until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true; it is evaluated whenever members or their room may have changed."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()
