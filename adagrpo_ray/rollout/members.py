"""The members of a pool: which rollout actors take requests, and which of them have room for another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from adagrpo_ray.errors import RolloutError
from adagrpo_ray.rollout.member import Member

Lost = Callable[[Member, str], None]


class Members:
    """The members that take requests. Belongs to one event loop; not shared between threads.

    Requests wait here, in the order of their arrival, until a member has room. So they go to the member that is free
    first, and a member that joins gets its share. Without a member, they wait until one is added. They raise an error
    if none will be added: if `lost` is None, and after `close`.
    """

    def __init__(self, members: Iterable[Member], limit: int, lost: Lost | None) -> None:
        """`limit` is the usual one of a request, in sequences; `lost` is called once for each member that is lost."""
        self._members, self._limit, self._lost = list(members), limit, lost
        self._closed: str | None = None if lost else "there is no rollout actor"  # the reason why none will join
        self._turn, self._low_turn = asyncio.Lock(), asyncio.Lock()  # of the next request, and of that with a low limit
        self._changed = asyncio.Event()  # whether members or their room may have changed

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        """Iterate over the members of now, also if some join or leave meanwhile."""
        return iter(tuple(self._members))

    def add(self, member: Member) -> None:
        """Let a member take requests."""
        self._members.append(member)
        self._changed.set()

    def remove(self, member: Member, reason: str) -> None:
        """Remove a lost member, once, even if several requests notice the loss."""
        if member not in self._members:
            return
        self._members.remove(member)
        if self._lost is not None:
            self._lost(member, reason)
        elif not self._members:
            self._closed = reason
        self._changed.set()

    async def drain(self, member: Member) -> None:
        """Stop sending requests to a member; returns when it has none in flight."""
        if member in self._members:
            self._members.remove(member)
            self._changed.set()
        await self._until(lambda: not member.requests)

    def close(self, reason: str) -> None:
        """Declare that no member will join: once there is none left, requests raise RolloutError with `reason`."""
        self._closed = reason
        self._changed.set()

    def replied(self) -> None:
        """Declare that a request has ended, so that its member has more room."""
        self._changed.set()

    async def next(self, limit: int) -> Member:
        """Wait for the turn of a request with this limit; returns the member with the fewest tokens that has room.

        For a limit below the usual one, a member is kept from other requests until it has room. The caller has to send
        the request before it waits for anything else. Raises RolloutError if no member is left.
        """
        if limit < self._limit:
            async with self._low_turn:
                return await self._with_few_requests(limit)
        async with self._turn:
            await self._until(lambda: self._free(limit) or self._none_left)
        return self._least_loaded(self._free(limit))

    async def _with_few_requests(self, limit: int) -> Member:
        """Keep a member from other requests until it has room; another one if it is lost meanwhile."""
        while True:
            await self._until(lambda: self._members or self._none_left)
            member = self._least_loaded([m for m in self._members if m.has_room(limit)] or self._members)
            member.kept = True
            try:
                await self._until(partial(self._settled, member, limit))
            finally:
                member.kept = False
                self._changed.set()
            if member in self._members:
                return member

    def _settled(self, member: Member, limit: int) -> bool:
        """Whether a member has room, or has left."""
        return member.has_room(limit) or member not in self._members

    def _free(self, limit: int) -> list[Member]:
        return [member for member in self._members if member.has_room(limit) and not member.kept]

    def _least_loaded(self, members: Sequence[Member]) -> Member:
        if not members:
            raise RolloutError(str(self._closed))
        return min(members, key=lambda member: member.outstanding)

    @property
    def _none_left(self) -> bool:
        return self._closed is not None and not self._members

    async def _until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition is true; it is evaluated whenever members or their room may have changed."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()
