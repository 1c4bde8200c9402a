"""The process that loads environments once, and makes a copy of itself for each group.

It is `python -m adagrpo_ray.environments.fork_server SOCKET`, started by `host`. It reads a pickled EpisodeSetup from
standard input, loads the user's modules, and replies with the schemas of the tools, or an error. Then each message
"group N" on its socket, with the socket of that group, forks a process, which takes milliseconds and shares the loaded
modules. So a module must start no thread, and open no connection, when it is imported.

All processes end with the learner. The kernel kills a group's process with this one, and this one ends, with all
processes that environments have started, when the learner's end of its socket is closed.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import pickle
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from adagrpo_ray.config.environments import NAME, TOOLS, EnvironmentSettings
from adagrpo_ray.environments.episode_session import Parts
from adagrpo_ray.environments.group_process import serve
from adagrpo_ray.environments.parser_choice import load_parser
from adagrpo_ray.environments.protocol import check_class
from adagrpo_ray.environments.tools import Tools, of_environment
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.given import Given
from adagrpo_ray.extensions.loading import describe_error, load_function
from adagrpo_ray.extensions.process_limits import die_with_parent, outlive_parent

PACKET = 2**15
"""Most bytes of one message on the socket of this process, which keeps messages apart (SOCK_SEQPACKET)."""


@dataclass(frozen=True)
class EpisodeSetup:
    """What to load: the settings, functions given as objects, the name of the parser, and the path of the tokenizer.

    Without `parser` the parser is not loaded, since only the schemas of the tools are needed.
    """

    settings: EnvironmentSettings
    given: Given
    parser: str | None
    tokenizer_path: str


def load(setup: EpisodeSetup) -> tuple[Parts, list[dict[str, Any]]]:
    """Load the functions of the user; returns the parts of episodes, and the schemas of all tools.

    One environment is made and closed, which fills the caches of its module before the first fork. Raises ConfigError
    if something cannot be loaded, or if the environment cannot be made.
    """
    settings = setup.settings
    functions = tuple(load_function(name, TOOLS, (), setup.given) for name in settings.tools)
    make = None if settings.name is None else load_function(settings.name, NAME, (), setup.given)
    made = None if make is None else _made(make, settings)
    own, schemas = of_environment(made)
    schemas = [*Tools((*functions, *own)).schemas, *schemas]
    close = getattr(made, "close", None)
    if callable(close) and not inspect.iscoroutinefunction(close):
        with suppress(Exception):  # the episodes report it
            close()
    parse = load_parser(setup.parser, setup.given, setup.tokenizer_path, schemas) if setup.parser and schemas else None
    return Parts(settings, make, functions, parse), schemas


def _made(make: Callable[..., Any], settings: EnvironmentSettings) -> Any:
    """Return an environment. Raises ConfigError if it cannot be made, or lacks a method."""
    try:
        made = make(**settings.arguments)
        check_class(made, str(settings.name))
    except ExtensionError as error:
        raise ConfigError(str(error)) from None
    except Exception as error:
        raise ConfigError(
            f"{NAME}: making {settings.name!r} with environment.arguments={dict(settings.arguments)!r:.200} raised "
            f"{describe_error(error)}; correct the class or the arguments"
        ) from None
    return made


def main(control: socket.socket) -> None:
    """Load, reply, and serve until the learner's end of the socket is closed."""
    die_with_parent(os.getppid())  # while modules are imported, the socket is not read
    setup: EpisodeSetup = pickle.load(sys.stdin.buffer)
    try:
        parts, schemas = load(setup)
        reply: dict[str, Any] = {"tools": schemas}
    except ConfigError as error:
        parts, reply = None, {"error": str(error)}
    except BaseException as error:  # a module of the user may raise anything
        parts, reply = None, {"error": f"environment: loading it raised {describe_error(error)}; correct it"}
    _send(control, json.dumps(reply).encode() + b"\n")
    if parts is None:
        return
    outlive_parent()
    gc.collect()
    gc.freeze()  # so that a collection in a copy does not write to all shared pages
    _Server(parts, control).serve()


class _Server:
    def __init__(self, parts: Parts, control: socket.socket) -> None:
        self._parts, self._control = parts, control
        self._groups: dict[int, int] = {}  # numbers of groups by the ids of their processes

    def serve(self) -> None:
        """Fork and kill processes of groups as the learner requests, and report those that end."""
        ended, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        try:
            while True:
                ready, _, _ = select.select([self._control.fileno(), ended], [], [])
                if ended in ready:
                    os.read(ended, 4096)
                    self._reap()
                if self._control.fileno() in ready and not self._obey():
                    return
        finally:
            for process in self._groups:
                _kill(process)

    def _obey(self) -> bool:
        """Do the next request; returns False at the end."""
        message, descriptors, _, _ = socket.recv_fds(self._control, 64, 1)
        order, _, number = message.decode().partition(" ")
        if order == "group":
            self._fork(int(number), socket.socket(fileno=descriptors[0]))
        elif order == "kill":
            for process, group in self._groups.items():
                if group == int(number):
                    _kill(process)
        return bool(message)

    def _fork(self, number: int, connection: socket.socket) -> None:
        me = os.getpid()
        try:
            process = os.fork()
        except OSError:  # too many processes: the learner sees the end of the connection
            connection.close()
            _send(self._control, f"ended {number} 1".encode())
            return
        if process:
            connection.close()
            self._groups[process] = number
            return
        try:
            os.setsid()  # the leader of a session, with all processes that its environments start
            die_with_parent(me)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            serve(self._parts, connection)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        for process in list(self._groups):
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill(process)  # and all that it has started, while its id cannot be that of another process
            _, status = os.waitpid(process, 0)
            number = self._groups.pop(process)
            with suppress(OSError):  # the learner may be gone
                _send(self._control, f"ended {number} {os.waitstatus_to_exitcode(status)}".encode())


def _send(control: socket.socket, data: bytes) -> None:
    """Send bytes in packets; a packet is at most as large as the buffer of the socket."""
    for start in range(0, len(data), PACKET):
        control.sendall(data[start : start + PACKET])


def _kill(process: int) -> None:
    """Kill the process of a group, and all processes of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    with suppress(ProcessLookupError):  # it may not lead its session yet
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    # pickle and the sockets of groups need the module under its own name.
    from adagrpo_ray.environments import fork_server

    fork_server.main(socket.socket(fileno=int(sys.argv[1])))
