"""Several rollout actors behind one `generate`: the least loaded gets the next request, a lost one's go to others."""

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
    """Routes requests over its members. Lives in the process that samples; not shared between threads.

    A member that dies, hangs or whose engine dies leaves the pool, `lost` is called, and its requests go to others with
    the same seeds. Without a member, requests wait for one to be added; they raise if none will be, which is so
    with `lost` None, and after `close`.
    """

    def __init__(
        self, actors: Iterable[Any], request_timeout_s: float, stall_timeout_s: float, lost: Lost | None = None
    ) -> None:
        self._members = [Member(actor, f"rollout actor {number}") for number, actor in enumerate(actors)]
        self._request_timeout, self._stall_timeout = request_timeout_s, stall_timeout_s
        self._lost = lost
        self._closed: str | None = None if lost else "there is no rollout actor"  # why no member will join any more
        self._changed = asyncio.Condition()
        self._sent: tuple[Any, AdapterWeights] | None = None  # the newest version: a reference to it, and itself
        self.version = -1  # in effect on all members
        self._newest = -1  # in effect on some, while it is being applied

    @property
    def members(self) -> tuple[Member, ...]:
        """Those that take requests."""
        return tuple(self._members)

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """The request's completions, from the member with the fewest outstanding tokens, or from another in its place.

        If the caller is cancelled, the actor gives the request up too. Raises RolloutError if no member is left to send
        it to, SyncError if one answered under a version that was not in effect meanwhile, and the engine's own errors.
        """
        while True:
            member, oldest = await self._least_loaded(), self.version
            try:
                completions = await self._ask(member, request)
            except ActorLostError as error:
                self._remove(member, str(error))
                continue
            wrong = {c.weight_version for c in completions if not oldest <= c.weight_version <= self._newest}
            if wrong:
                raise SyncError(f"{member.name} answered under version {wrong}, the pool is at {self.version}")
            return completions

    async def add(self, member: Member) -> None:
        """Bring it to the newest version, then send requests to it; ActorLostError if it is lost meanwhile."""
        held = None
        while held is not self._sent:
            held = self._sent
            if held is not None:
                await self._bring(member, *held)
        self._members.append(member)
        await self._notify()

    async def drain(self, member: Member) -> None:
        """Send it nothing any more; returns when it has nothing left to do."""
        if member in self._members:
            self._members.remove(member)
        async with self._changed:
            await self._changed.wait_for(lambda: member.outstanding == 0)

    async def close(self, reason: str) -> None:
        """No member will come any more: once there is none, requests raise a RolloutError with this reason."""
        self._closed = reason
        await self._notify()

    async def apply(self, weights: AdapterWeights) -> list[SyncReceipt]:
        """Put a version into effect on all members; the tensors are put into the object store once.

        Returns only when every one has read back the learner's digest; raises SyncError otherwise. A member that is
        lost meanwhile leaves the pool.
        """
        reference, self._newest = ray.put(weights), weights.version
        self._sent = (reference, weights)
        receipts: list[SyncReceipt] = await self._all(lambda member: self._bring(member, reference, weights))
        self.version = weights.version
        return receipts

    async def sleep(self) -> None:
        """Have all members leave their GPUs; nothing may be in flight. One that is lost meanwhile leaves the pool."""
        await self._all(lambda m: m.in_time(m.actor.sleep.remote(), self._stall_timeout, "leave its GPU"))

    async def wake(self) -> None:
        """Have them come back; a version has to be applied before they generate again."""
        await self._all(lambda m: m.in_time(m.actor.wake.remote(), self._stall_timeout, "come back to its GPU"))
        self.version = self._newest = -1  # so that no answer counts before
        self._sent = None

    async def _all(self, work: Callable[[Member], Awaitable[Any]]) -> list[Any]:
        """The results of all members, side by side; one that is lost meanwhile leaves the pool and has none."""
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

    async def _ask(self, member: Member, request: GenerationRequest) -> tuple[Completion, ...]:
        try:
            return await member.generate(request, self._request_timeout)
        finally:
            if member not in self._members:  # `drain` waits for it to end
                await self._notify()

    async def _bring(self, member: Member, reference: Any, weights: AdapterWeights) -> SyncReceipt:
        """Have a member put a version into effect, and compare its digest; ActorLostError if it hangs."""
        applied, what = member.actor.apply.remote(reference), f"take version {weights.version}"
        receipt: SyncReceipt = await member.in_time(applied, self._stall_timeout, what)
        if (receipt.version, receipt.digest) != (weights.version, weights.digest):
            raise SyncError(
                f"{member.name} holds version {receipt.version} with digest {receipt.digest[:12]}; "
                f"the learner sent version {weights.version} with {weights.digest[:12]}"
            )
        return receipt

    def _remove(self, member: Member, reason: str) -> None:
        """Take it out, once, however many requests notice."""
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
