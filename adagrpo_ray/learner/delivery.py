"""The versions of the adapter on their way to the rollout actors, and the work that waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from adagrpo_ray.learner.background import Background
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.rollout.pool import RolloutPool

T = TypeVar("T")


class Delivery:
    """Sends versions of the adapter to the actors of a pool in `background`, one after the other.

    After a version that could not be sent, `send`, `check` and the work that waits for it raise its error.
    """

    def __init__(self, background: Background, pool: RolloutPool) -> None:
        self._background, self._pool = background, pool
        self._sending: asyncio.Task[float] | None = None  # the newest version, until its arrival is known
        self._seconds = 0.0

    def send(self, weights: AdapterWeights, *, wait: bool) -> float:
        """Send a version, once the one before has arrived; with `wait`, return when all rollout actors have it.

        Returns the seconds that the newest version of known arrival took; 0 if there is none.
        Raises the errors of `RolloutPool.apply`.
        """
        self._arrived()
        self._sending = self._background.start(self._send(weights))
        if wait:
            self._arrived()
        return self._seconds

    def after(self, work: Callable[[], Awaitable[T]]) -> Coroutine[Any, Any, T]:
        """A coroutine that does `work` when the version that was sent last before this call has arrived.

        Several such coroutines continue in the order in which they were started.
        """
        return _after(self._sending, work)

    def check(self) -> None:
        """Raise the error of a version that could not be sent; does not wait."""
        if self._sending is not None and self._sending.done():
            self._sending.result()

    def settle(self) -> None:
        """Wait until no version is on its way; ignores errors."""
        with suppress(Exception):
            self._arrived()

    async def _send(self, weights: AdapterWeights) -> float:
        began = time.perf_counter()
        await self._pool.apply(weights)
        return time.perf_counter() - began

    def _arrived(self) -> None:
        """Wait until the newest version has arrived; raises its error."""
        if (sending := self._sending) is not None:
            self._seconds = self._background.run(_arrival(sending))
            self._sending = None


async def _after(sending: asyncio.Task[float] | None, work: Callable[[], Awaitable[T]]) -> T:
    if sending is not None:
        await _arrival(sending)
    return await work()


async def _arrival(sending: asyncio.Task[float]) -> float:
    """Wait for a version; returns the seconds that it took, or raises its error."""
    await asyncio.wait({sending})  # not `await sending`, which would cancel it if this waiter is cancelled
    return sending.result()
