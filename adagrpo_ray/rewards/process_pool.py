"""A pool of scoring processes: in parallel, with limits of time and memory, and isolated from this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.extensions.process_limits import OUT_OF_MEMORY
from adagrpo_ray.rewards import scoring_process as worker
from adagrpo_ray.rewards.spawn import MainlessSpawnContext

T = TypeVar("T")

WATCH_S = 1.0
"""Seconds between two looks at the pool while a group is scored."""


class ScoringPool:
    """A pool of `settings.workers` processes; `run` may be awaited many times at once.

    A process that exceeds a limit of time or memory, or dies, is replaced, and only its group fails. A group whose
    process was killed is scored a second time. The processes die with this one, or end by `close`. `starter` is a
    thread that lives as long as they do, since the kernel kills them when the thread ends that started them.
    """

    def __init__(self, functions: worker.Functions, settings: RewardsSettings, starter: ThreadPoolExecutor) -> None:
        self._functions, self._settings, self._starter = functions, settings, starter
        self._pending: set[Future[Any]] = set()
        self._closed = False
        self._pool = self._start()

    async def run(self, call: Callable[..., T], args: tuple[Any, ...], prompt_id: str) -> T:
        """Return the result of `call(*args)`, a function of `scoring_process`, in one of the processes.

        Raises RewardError, which names the prompt, if it fails or after `close`.
        """
        limit = self._settings.timeout_s
        group = self._group(prompt_id)
        # Twice, since a group may be lost through no fault of its own: if a worker is killed while it waits for work,
        # the pool breaks, and the kernel may kill a worker while it scores to free memory.
        for once_more in (True, False):
            if self._closed:
                raise RewardError(f"{group}: the scorer is closed; make a new one")
            if not self._pool.active:
                self._stop()
                self._pool = self._start()
            pool = self._pool
            try:
                future: Future[T] = pool.schedule(call, args=args, timeout=limit)
            except RuntimeError:  # the pool broke just now
                continue
            self._pending.add(future)
            try:
                return await _result(pool, future)
            except RewardError as error:
                raise RewardError(f"{error} (scoring prompt {prompt_id!r})") from error
            except TimeoutError:
                raise self.late(prompt_id) from None
            except ProcessExpired as error:
                if error.exitcode == OUT_OF_MEMORY:
                    memory = self._functions.memory_gib
                    raise RewardError(
                        f"{group} ran out of memory with rewards.memory_gib={'null' if memory is None else memory}; "
                        "make the function use less or raise the limit"
                    ) from None
                if once_more and error.exitcode < 0:
                    continue
                raise RewardError(
                    f"{group} ended its process with exit code {error.exitcode}; find out which function ends it "
                    "(a negative code is a signal: -9 is often a lack of memory, -11 a crash)"
                ) from None
            except BrokenProcessPool:
                continue
            except asyncio.CancelledError:
                # Cancelled by the caller, or by `_stop`?
                caller = asyncio.current_task()
                if caller is None or caller.cancelling():
                    raise
            finally:
                self._pending.discard(future)
        raise RewardError(
            f"{group}: the scoring processes die before they score; import the functions' modules in Python to find "
            "the cause"
        )

    def late(self, prompt_id: str) -> RewardError:
        """Return the error of a group that was not scored in time."""
        return RewardError(
            f"{self._group(prompt_id)} did not finish within rewards.timeout_s={self._settings.timeout_s:g}; "
            "make the function faster or raise the limit"
        )

    def close(self) -> None:
        """End the processes; groups that wait for scores get a RewardError."""
        self._closed = True
        self._stop()

    def _group(self, prompt_id: str) -> str:
        return f"rewards.functions {', '.join(self._functions.names)} on prompt {prompt_id!r}"

    def _start(self) -> ProcessPool:
        pool = ProcessPool(
            max_workers=self._settings.workers,
            initializer=worker.start,
            initargs=(self._functions,),
            context=MainlessSpawnContext(),
        )
        # Reading `active` starts its processes.
        self._starter.submit(lambda: pool.active).result()
        return pool

    def _stop(self) -> None:
        """End the pool and cancel its tasks, which would otherwise wait forever."""
        self._pool.stop()
        for future in tuple(self._pending):
            future.cancel()
        self._pool.join()


async def _result(pool: ProcessPool, future: Future[T]) -> T:
    """Wait for the result of a task. Raises BrokenProcessPool if the pool broke and forgot the task.

    A pool that breaks aborts the tasks that it has registered. A task that was scheduled just before is registered
    after that, and its future would wait forever (pebble 5.2, `task_scheduler_loop`).
    """
    waiting = asyncio.wrap_future(future)
    try:
        while not (await asyncio.wait({waiting}, timeout=WATCH_S))[0]:
            if not pool.active:
                raise BrokenProcessPool("the pool broke before it registered the task")
        return waiting.result()
    finally:
        waiting.cancel()
