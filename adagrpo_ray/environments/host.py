"""The learner's side of the processes of environments: one process for each group, made by the fork server."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

from adagrpo_ray.environments.fork_server import PACKET, EpisodeSetup
from adagrpo_ray.environments.group_process import CLOSE_S, SLOW
from adagrpo_ray.environments.wire import receive_reply, send_request
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.process_limits import OUT_OF_MEMORY

LOAD_TIMEOUT_S = 180.0
"""Most seconds to load the modules of the user."""
GRACE_S = 5.0
"""Seconds after the time limit of a call after which its process is killed: it may not answer."""
END_S = 10.0
"""Most seconds in which the fork server ends."""


class CallError(Exception):
    """A call of an environment failed; `kind` is the same for failures of the same cause."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Sessions:
    """The sessions of one group, in a process of their own."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        exit_code: asyncio.Future[int],
        limit_s: float,
    ) -> None:
        """`exit_code` is that of the process, once it has ended."""
        self._reader, self._writer, self._exit_code, self._limit = reader, writer, exit_code, limit_s
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())
        self.hung = False  # whether the process did not answer in time

    async def call(self, do: str, session: int = 0, *, limit_s: float | None = None, **arguments: Any) -> Any:
        """Call a method of a session; returns its result. Raises CallError if it fails or does not answer in time.

        `limit_s` replaces `environment.timeout_s`.
        """
        number, limit = next(self._numbers), self._limit if limit_s is None else limit_s
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        request = {"do": do, "number": number, "session": session, "limit": limit, **arguments}
        try:
            if self._reading.done():
                raise CallError(await self._loss(), "lost")
            with suppress(ConnectionError):  # the end of the connection is noticed by `_read`
                await send_request(self._writer, request)
            async with asyncio.timeout(limit + GRACE_S):
                reply = await answer
        except TimeoutError:
            self.hung = True
            raise CallError(f"{SLOW.format(limit)}, and its process did not answer", "slow") from None
        finally:
            self._waiting.pop(number, None)
        if "error" in reply:
            raise CallError(str(reply["error"]), str(reply.get("kind", "")))
        return reply.get("found")

    async def open(self, sessions: int) -> None:
        """Prepare the process for so many sessions, at once and without a reply."""
        await send_request(self._writer, {"do": "open", "sessions": sessions})

    async def close(self) -> None:
        """Ask the process to close its environments and to end, and wait for that for a few seconds."""
        with suppress(ConnectionError):
            await send_request(self._writer, {"do": "close"})
        await asyncio.wait({self._reading}, timeout=0.0 if self.hung else CLOSE_S + 1.0)

    def abandon(self) -> None:
        """Close the connection, without a wait."""
        self._reading.cancel()
        self._writer.close()

    async def _read(self) -> None:
        while (reply := await receive_reply(self._reader)) is not None:
            answer = self._waiting.get(int(reply.get("number", -1)))
            if answer is not None and not answer.done():
                answer.set_result(reply)
        if self._waiting:
            error = {"error": await self._loss(), "kind": "lost"}
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_result(error)

    async def _loss(self) -> str:
        """Return the reason why the process has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                code = await asyncio.shield(self._exit_code)
                if code == OUT_OF_MEMORY:
                    return "its process ran out of memory (environment.memory_gib)"
                return f"its process ended with exit code {code} (-9 is often a lack of memory, -11 a crash)"
        return "its process ended"


class Host:
    """Starts the fork server when it is first needed, and a process for each group. Belongs to one event loop."""

    def __init__(self, setup: EpisodeSetup) -> None:
        self._setup = setup
        self._slots = asyncio.Semaphore(setup.settings.processes)
        self._starting = asyncio.Lock()
        self._fork_server: _ForkServer | None = None
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()

    async def tools(self) -> list[dict[str, Any]]:
        """Return the schemas of the tools. Raises ConfigError if the environment or a tool cannot be loaded."""
        return (await self._started()).tools

    @asynccontextmanager
    async def sessions(self, number: int) -> AsyncIterator[Sessions]:
        """Run a process with so many sessions within the block, once fewer than `environment.processes` are running.

        After the block it closes its environments and ends, for which nothing waits. Raises ConfigError as `tools`, and
        ExtensionError after `close`.
        """
        await self._slots.acquire()
        try:
            fork_server = await self._started()
            group, sessions = await fork_server.group(number, self._setup.settings.timeout_s)
        except BaseException:
            self._slots.release()
            raise
        try:
            yield sessions
        finally:
            task = asyncio.create_task(self._end(fork_server, group, sessions))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def ended(self) -> None:
        """Wait until the processes of all groups have ended whose blocks are over."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    def close(self) -> None:
        """End all processes. It may be called from another thread than that of the event loop."""
        self._closed = True
        if self._fork_server is not None:
            self._fork_server.close()

    async def _started(self) -> _ForkServer:
        async with self._starting:
            if self._closed:
                raise ExtensionError("environment: its processes have been ended; begin a new run")
            if self._fork_server is None or self._fork_server.lost:
                self._fork_server = await _ForkServer.start(self._setup)
            return self._fork_server

    async def _end(self, fork_server: _ForkServer, group: int, sessions: Sessions) -> None:
        try:
            await sessions.close()
        finally:
            fork_server.kill(group)
            sessions.abandon()
            self._slots.release()


class _ForkServer:
    """The process that forks those of groups."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, tools: list[dict[str, Any]]) -> None:
        self._process, self._control, self.tools = process, control, tools
        self._numbers = count()
        self._codes: dict[int, asyncio.Future[int]] = {}
        self._loop = asyncio.get_running_loop()
        self.lost = False
        self._loop.add_reader(control, self._read)

    @classmethod
    async def start(cls, setup: EpisodeSetup) -> _ForkServer:
        """Start it and wait until it has loaded the environment. Raises ConfigError if it cannot."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "adagrpo_ray.environments.fork_server", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal is for the program
                env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        try:
            reply = await _loaded(process, ours, setup)
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        return cls(process, ours, list(reply["tools"]))

    async def group(self, sessions: int, limit_s: float) -> tuple[int, Sessions]:
        """Fork a process for a group of so many sessions; returns its number and the sessions."""
        number, exit_code = next(self._numbers), self._loop.create_future()
        self._codes[number] = exit_code
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, suppress(OSError):  # without a fork server the connection ends at once
            await self._fork(number, theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        found = Sessions(reader, writer, exit_code, limit_s)
        with suppress(ConnectionError):
            await found.open(sessions)
        return number, found

    async def _fork(self, number: int, connection: socket.socket) -> None:
        while True:
            try:
                socket.send_fds(self._control, [f"group {number}".encode()], [connection.fileno()])
            except BlockingIOError:  # the buffer is full
                await asyncio.sleep(0.01)
            else:
                return

    def kill(self, number: int) -> None:
        """Kill the process of a group, and all that it has started, if it still exists."""
        with suppress(OSError):
            self._control.send(f"kill {number}".encode())

    def close(self) -> None:
        """End the fork server and all processes of groups."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        """Take a message of the fork server, or notice its end."""
        try:
            message = self._control.recv(PACKET)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self.lost = True
            self._loop.remove_reader(self._control)
            self._control.close()
            return
        _, number, code = message.decode().split()
        waiting = self._codes.pop(int(number), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(int(code))


async def _loaded(process: subprocess.Popen[bytes], control: socket.socket, setup: EpisodeSetup) -> dict[str, Any]:
    """Return the reply of the fork server after it has loaded `setup`. Raises ConfigError if it cannot."""
    try:
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            await asyncio.to_thread(_feed, process, pickle.dumps(setup))
            reply = await _first_reply(control)
    except TimeoutError:
        raise ConfigError(
            f"environment: importing its module took more than {LOAD_TIMEOUT_S:g} s; do such work in its constructor "
            "or in reset"
        ) from None
    if "error" in reply:
        raise ConfigError(str(reply["error"]))
    return reply


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(data)


async def _first_reply(control: socket.socket) -> dict[str, Any]:
    """Return the first reply of the fork server. Raises ConfigError if it ends before."""
    loop, data = asyncio.get_running_loop(), b""
    while not data.endswith(b"\n"):
        packet = await loop.sock_recv(control, PACKET)
        if not packet:
            raise ConfigError(
                "environment: the process that loads it ended without a reply; import its module in Python to find the "
                "cause"
            )
        data += packet
    reply: dict[str, Any] = json.loads(data)
    return reply
