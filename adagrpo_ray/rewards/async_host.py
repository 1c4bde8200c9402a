"""One scoring process whose event loop awaits coroutine functions for many groups at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Lock, Thread
from typing import Any

from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards.async_process import LATE, serve
from adagrpo_ray.rewards.scoring_process import Functions, GroupScores, GroupTask
from adagrpo_ray.rewards.spawn import MainlessSpawnContext

GRACE_S = 5.0
"""Seconds after the time limit of a group until a process that has not replied counts as one that hangs."""


_Answer = tuple[GroupScores | None, str | None]  # scores or an error


class HostLostError(Exception):
    """The process died or hung before it had scored the group."""


class AsyncHost:
    """Scores at most `settings.max_concurrent` groups at the same time by coroutine functions, in one process.

    The process starts with the first group. One that dies or hangs loses all of its groups, each of which gets a
    HostLostError; the next group starts another process. `starter` is a thread that lives as long as the process.
    """

    def __init__(self, functions: Functions, settings: RewardsSettings, starter: ThreadPoolExecutor) -> None:
        self._functions, self._timeout_s, self._starter = functions, settings.timeout_s, starter
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        self._process: _HostProcess | None = None
        self._closed = False

    async def score(self, task: GroupTask, places: Sequence[int]) -> GroupScores:
        """Return the scores [G, F] of a group by the coroutine functions at these places.

        Raises RewardError if a function breaks its contract, TimeoutError if the functions take longer than
        `rewards.timeout_s`, and HostLostError. If the caller is cancelled, the functions are, too.
        """
        async with self._slots:
            if self._closed:
                raise HostLostError("closed")
            if self._process is None or self._process.lost:
                self._process = self._starter.submit(_HostProcess, self._functions, self._timeout_s).result()
            scores, error = await self._process.ask(task, places, self._timeout_s + GRACE_S)
        if error == LATE:
            raise TimeoutError
        if scores is None:
            raise RewardError(str(error))
        return scores

    def close(self) -> None:
        """End the process; groups in it get a HostLostError."""
        self._closed = True
        if self._process is not None:
            self._process.end()


class _HostProcess:
    """A running process, the pipe to it, and the groups in it."""

    def __init__(self, functions: Functions, timeout_s: float) -> None:
        context = MainlessSpawnContext()
        pipe, theirs = context.Pipe()
        self._pipe: Connection = pipe
        self._process: BaseProcess = context.Process(target=serve, args=(theirs, functions, timeout_s), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends with the process
        self.lost = False
        self._ready = _future()
        self._groups: dict[int, Future[_Answer]] = {}
        self._numbers, self._lock = count(), Lock()
        self._sender = ThreadPoolExecutor(1)  # since a full pipe would hold up the event loop
        self._reader = Thread(target=self._read, name="reads-scores", daemon=True)
        self._reader.start()

    async def ask(self, task: GroupTask, places: Sequence[int], limit_s: float) -> _Answer:
        """Return the scores of a group, or the error. Raises HostLostError if there is no reply within `limit_s`."""
        await asyncio.wrap_future(self._ready)
        number = next(self._numbers)
        future: Future[_Answer] = _future()
        with self._lock:
            if self.lost:
                raise HostLostError("the process has ended")
            self._groups[number] = future
        self._send((number, task, places))
        waiting = asyncio.wrap_future(future)
        try:
            if not (await asyncio.wait({waiting}, timeout=limit_s))[0]:
                self._process.kill()
                raise HostLostError("the process hangs")
            scored: tuple[GroupScores | None, str | None] = waiting.result()
            return scored
        finally:
            waiting.cancel()
            with self._lock:
                unanswered = self._groups.pop(number, None) is not None
            if unanswered:
                self._send((number, None, ()))

    def end(self) -> None:
        """Kill the process, and wait until it has ended and its groups are lost."""
        self._process.kill()
        self._reader.join()

    def _send(self, message: object) -> None:
        with suppress(RuntimeError):  # if the process has ended, and the sender with it
            self._sender.submit(self._pipe.send, message)

    def _read(self) -> None:
        """Pass the replies to their groups until the process ends."""
        try:
            while True:
                number, scores, error = self._pipe.recv()
                with self._lock:
                    future = self._ready if number < 0 else self._groups.pop(number, None)
                if future is not None:
                    future.set_result((scores, error))
        except (EOFError, OSError):
            pass
        self._process.kill()
        self._process.join()
        with self._lock:
            self.lost = True
            left = [*self._groups.values()]
            self._groups.clear()
        self._sender.shutdown(wait=False)
        for future in (*([] if self._ready.done() else [self._ready]), *left):
            future.set_exception(HostLostError("the process has ended"))


def _future() -> Future[Any]:
    """Return a future that only its result ends: a waiter that is cancelled does not cancel it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
