"""The process of a group: serves the sessions of its episodes until the socket of the learner is closed."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from adagrpo_ray.environments.episode_session import Parts, Session
from adagrpo_ray.environments.wire import receive_request, send_reply
from adagrpo_ray.errors import AdaGRPOError
from adagrpo_ray.extensions.loading import describe_error
from adagrpo_ray.extensions.process_limits import OUT_OF_MEMORY, limit_memory

STACK = 2**21
"""Bytes of the stack of a thread, all of which count as memory of the process."""
CLOSE_S = 3.0
"""Most seconds to close the environments of a group."""
SLOW = "it did not finish within environment.timeout_s={:g}"
"""Message for a call that takes too long."""


def serve(parts: Parts, connection: socket.socket) -> None:
    """Serve the sessions of one group, and end the process; it does not return."""
    limit_memory(parts.settings.memory_gib)
    random.seed(0)
    threading.stack_size(STACK)
    code = 0
    try:
        asyncio.run(_Group(parts).serve(connection))
    except MemoryError:
        code = OUT_OF_MEMORY
    finally:
        os._exit(code)  # waits for no thread, which may hang


class _Group:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sessions: dict[int, Session] = {}
        self._threads = ThreadPoolExecutor(max_workers=1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, connection: socket.socket) -> None:
        """Answer requests until the learner closes the connection or requests the end."""
        reader, writer = await asyncio.open_connection(sock=connection)
        while (request := await receive_request(reader)) is not None:
            if request["do"] == "open":  # first of all: one thread for each session, none of which waits for another
                self._threads = ThreadPoolExecutor(max_workers=request["sessions"])
                self._sessions = {n: Session(self._parts, self._threads) for n in range(request["sessions"])}
            elif request["do"] == "close":
                break
            else:
                task = asyncio.create_task(self._answer(writer, request))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        await self._close()

    async def _answer(self, writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
        number, limit = request["number"], request["limit"]
        try:
            async with asyncio.timeout(limit) as timeout:
                found = await self._do(self._sessions[request["session"]], request)
            await send_reply(writer, {"number": number, "found": found})
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # the module of the environment may still hold the memory
        except Exception as error:  # the environment may raise anything, or give values that JSON does not have
            slow = isinstance(error, TimeoutError) and timeout.expired()
            message = SLOW.format(limit) if slow else _described(error)
            await send_reply(writer, {"number": number, "error": message, "kind": "slow" if slow else _kind(error)})

    async def _do(self, session: Session, request: dict[str, Any]) -> Any:
        actions: dict[str, Callable[[], Any]] = {
            "begin": lambda: session.begin(request["row"], request["seed"]),
            "step": lambda: session.step(request["text"], request["raw"]),
            "end": session.end,
            "rows": session.rows,
        }
        found = await actions[request["do"]]()
        return asdict(found) if request["do"] == "step" else found

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        closing = [asyncio.create_task(session.close()) for session in self._sessions.values()]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_S)


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, AdaGRPOError) else describe_error(error)


def _kind(error: Exception) -> str:
    """Return a name of the kind of an error: its class, and the line that raised it."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
    return f"{type(error).__name__} {place}"
