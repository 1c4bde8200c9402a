"""Several rollout actors behind one `generate`: routes each request to the least loaded, and again if it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import ray

from adagrpo_ray.errors import ActorLostError, RolloutError, SyncError
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.rollout.engine import SyncReceipt
from adagrpo_ray.rollout.member import Member
from adagrpo_ray.types import Completion, GenerationRequest

Lost = Callable[[Member, str], None]


class RolloutPool:
    """Routes requests to its members. Belongs to one event loop; not shared between threads.

    A member leaves the pool if it dies, hangs or loses its engine. Then `lost` is called, and its requests go to other
    members with the same seeds. Without a member, requests wait until one is added. They raise an error if none will be
    added: if `lost` is None, and after `close`.
    """

    def __init__(
        self, actors: Iterable[Any], request_timeout_s: float, stall_timeout_s: float, lost: Lost | None = None
    ) -> None:
        self._members = [Member(actor, f"rollout actor {number}") for number, actor in enumerate(actors)]
        self._request_timeout, self._stall_timeout = request_timeout_s, stall_timeout_s
        self._lost = lost
        self._closed: str | None = None if lost else "there is no rollout actor"  # the reason why none will join
        self._changed = asyncio.Condition()
        self._sent: tuple[Any, AdapterWeights] | None = None  # the newest version: a reference to it, and itself
        self.version = -1  # in effect on all members
        self._newest = -1  # in effect on some members, while it is being applied

    @property
    def members(self) -> tuple[Member, ...]:
        """The members that take requests."""
        return tuple(self._members)

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Generate the completions of the request on the member with the fewest outstanding tokens.

        If that member is lost, another one gets the request. If the caller is cancelled, the actor aborts the request.
        Raises RolloutError if no member is left, SyncError if a member used a version that was not in effect meanwhile,
        and the engine's own errors.
        """
        while True:
            member, oldest = await self._least_loaded(), self.version
            try:
                completions = await self._send(member, request)
            except ActorLostError as error:
                self._remove(member, str(error))
                continue
            wrong = {c.weight_version for c in completions if not oldest <= c.weight_version <= self._newest}
            if wrong:
                raise SyncError(f"{member.name} used version {wrong}, but the pool is at {self.version}")
            return completions

    async def add(self, member: Member) -> None:
        """Apply the newest version to a member, then let it take requests. Raises ActorLostError if it is lost."""
        held = None
        while held is not self._sent:
            held = self._sent
            if held is not None:
                await member.apply(*held, self._stall_timeout)
        self._members.append(member)
        await self._notify()

    async def drain(self, member: Member) -> None:
        """Stop sending requests to a member; returns when it has none in flight."""
        if member in self._members:
            self._members.remove(member)
        async with self._changed:
            await self._changed.wait_for(lambda: member.outstanding == 0)

    async def close(self, reason: str) -> None:
        """Declare that no member will join: once there is none left, requests raise RolloutError with `reason`."""
        self._closed = reason
        await self._notify()

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

    async def _least_loaded(self) -> Member:
        async with self._changed:
            await self._changed.wait_for(lambda: self._members or self._closed is not None)
        if not self._members:
            raise RolloutError(str(self._closed))
        return min(self._members, key=lambda member: member.outstanding)

    async def _send(self, member: Member, request: GenerationRequest) -> tuple[Completion, ...]:
        try:
            return await member.generate(request, self._request_timeout)
        finally:
            if member not in self._members:  # `drain` waits for it to end
                await self._notify()

    def _remove(self, member: Member, reason: str) -> None:
        """Remove a lost member, once, even if several requests notice the loss."""
        if member not in self._members:
            return
        self._members.remove(member)
        if self._lost is not None:
            self._lost(member, reason)
        elif not self._members:
            self._closed = reason

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
