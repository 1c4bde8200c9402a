"""Runs coroutines whose results are large, and coroutines that wait for hours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Awaitable[T]) -> T:
    """Return the result of `work`, as asyncio.run does.

    In Python 3.11, asyncio.run also makes a text of its task, with the result, when it sets and resets the handler of
    SIGINT. For a step of groups that takes twenty times as long as the step.
    """
    results: list[T] = []

    async def until_done() -> None:
        results.append(await work)

    asyncio.run(until_done())
    return results[0]


def run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, in a loop whose clock begins at 0 and jumps to the next timer when nothing is ready.

    So hours of waiting take no time, and a busy machine changes no order of events.
    """
    with asyncio.Runner(loop_factory=_VirtualTime) as runner:
        return runner.run(work)


class _VirtualTime(asyncio.SelectorEventLoop):
    _now = 0.0
    _ready: Any
    _scheduled: Any

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]
        if timers and not self._ready:
            self._now = max(self._now, min(timers))
        super()._run_once()  # type: ignore[misc]
