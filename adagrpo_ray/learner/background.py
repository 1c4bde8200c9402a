"""An event loop in its own thread, for coroutines that continue while their owner does something else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Runs coroutines concurrently, started in the order of the calls, until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="background", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start the coroutine. Once `wait` returns True, the task has its result."""

        async def begin() -> asyncio.Task[T]:
            return asyncio.get_running_loop().create_task(coroutine)

        return self.run(begin())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Start the coroutine and wait for its result; raises its error."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call(self, function: Callable[[], T]) -> T:
        """Call the function in the thread of the coroutines, between two of their steps; returns its result."""

        async def called() -> T:
            return function()

        return self.run(called())

    def wait(self, task: asyncio.Task[Any], timeout_s: float) -> bool:
        """Wait for the task for at most `timeout_s` seconds; returns whether it is done."""
        self.run(asyncio.wait({task}, timeout=timeout_s))
        return task.done()

    def cancel(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Cancel the tasks and wait until they have ended; ignores their errors."""
        self.run(_cancel(tuple(tasks)))

    def close(self) -> None:
        """Cancel all tasks, wait until they have ended, and stop the thread."""

        async def cancel_all() -> None:
            await _cancel(asyncio.all_tasks() - {asyncio.current_task()})

        self.run(cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    present = [task for task in tasks if task is not None]
    for task in present:
        task.cancel()
    await asyncio.gather(*present, return_exceptions=True)
