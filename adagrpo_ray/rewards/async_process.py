"""The process in which coroutine functions score many groups at the same time.

It reads (number, task, places) from a pipe and replies with (number, scores, error). A task of None cancels the group
of that number, which then gets no reply. The first reply, `READY`, is sent when the functions are loaded.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from adagrpo_ray.errors import RewardError
from adagrpo_ray.extensions.process_limits import limit_memory
from adagrpo_ray.rewards import scoring_process as worker

Order = tuple[int, worker.GroupTask | None, Sequence[int]]
Reply = tuple[int, worker.GroupScores | None, str | None]

READY: Reply = (-1, None, None)
LATE = "late"
"""The error of a group that was not scored in time."""


def serve(pipe: Connection, functions: worker.Functions, timeout_s: float) -> None:
    """Load the functions and score groups until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    # Otherwise a program that a function leaves behind would keep the pipe open after the end of this process.
    os.set_inheritable(pipe.fileno(), False)
    worker.start(functions)
    limit_memory(functions.memory_gib)
    asyncio.run(_serve(pipe, timeout_s))


async def _serve(pipe: Connection, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    running: dict[int, asyncio.Task[None]] = {}
    # Threads, so that a full or an empty pipe does not hold up the functions.
    with ThreadPoolExecutor(1) as sender, ThreadPoolExecutor(1) as receiver:
        sender.submit(pipe.send, READY)

        async def score(number: int, task: worker.GroupTask, places: Sequence[int]) -> None:
            try:
                sender.submit(pipe.send, await _reply(number, task, places, timeout_s))
            finally:
                del running[number]

        while True:
            try:
                order: Order = await loop.run_in_executor(receiver, pipe.recv)
            except (EOFError, OSError):
                break
            number, task, places = order
            if task is not None:
                running[number] = asyncio.create_task(score(number, task, places))
            elif number in running:
                running[number].cancel()
        for group in tuple(running.values()):
            group.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)


async def _reply(number: int, task: worker.GroupTask, places: Sequence[int], timeout_s: float) -> Reply:
    try:
        async with asyncio.timeout(timeout_s):
            return number, await worker.score_awaited(task, places), None
    except TimeoutError:
        return number, None, LATE
    except RewardError as error:
        return number, None, str(error)
