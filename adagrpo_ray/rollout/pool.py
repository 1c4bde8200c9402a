"""Several rollout actors behind one `generate`: routes each request to the least loaded, and again if it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import ray

from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.errors import ActorLostError, SyncError
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.rollout.engine import SyncReceipt
from adagrpo_ray.rollout.member import Member, sequences_in_flight
from adagrpo_ray.rollout.members import Lost, Members
from adagrpo_ray.rollout.tries import Tries
from adagrpo_ray.types import Completion, GenerationRequest


class RolloutPool:
    """Routes requests to its members. Belongs to one event loop; not shared between threads.

    A member leaves the pool if it dies, hangs or loses its engine. Then `lost` is called, and its requests go to other
    members with the same seeds. Without `lost`, requests raise an error once no member is left.

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
        named = (Member(actor, f"rollout actor {number}") for number, actor in enumerate(actors))
        self.members = Members(named, sequences_in_flight(settings), lost)
        self._request_timeout, self._stall_timeout = settings.request_timeout_s, settings.stall_timeout_s
        self._tries = Tries(sequences_in_flight(settings), notify)
        self._sent: tuple[Any, AdapterWeights] | None = None  # the newest version: a reference to it, and itself
        self.version = -1  # in effect on all members
        self._newest = -1  # in effect on some members, while it is being applied

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Generate the completions of the request on the member with the fewest outstanding tokens that has room.

        If that member is lost, another one gets the request. If the caller is cancelled, the actor aborts the request.
        Raises RequestLostError if the prompt is given up, RolloutError if no member is left, SyncError if a member used
        a version that was not in effect meanwhile, and the engine's own errors.
        """
        reason = ""
        for limit in self._tries.limits:
            self._tries.check(request.prompt_id)
            member = await self.members.next(limit)
            oldest = self.version
            try:
                completions = await self._send(member, request, limit)
            except ActorLostError as error:
                reason = str(error)
                self.members.remove(member, reason)
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
        self.members.add(member)

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

    def end_run(self) -> None:
        """End a run: the next one may send requests of the prompts that this one has given up."""
        self._tries.forget()

    async def _all(self, work: Callable[[Member], Awaitable[Any]]) -> list[Any]:
        """Do `work` on all members concurrently; returns the results. A member that is lost meanwhile has none."""
        members = tuple(self.members)
        results = await asyncio.gather(*(work(member) for member in members), return_exceptions=True)
        for member, result in zip(members, results, strict=True):
            if isinstance(result, ActorLostError):
                self.members.remove(member, str(result))
            elif isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]

    async def _send(self, member: Member, request: GenerationRequest, limit: int) -> tuple[Completion, ...]:
        try:
            return await member.generate(request, limit, self._request_timeout)
        finally:
            self.members.replied()
