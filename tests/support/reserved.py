"""Ports, addresses and networks that no other test process of this machine uses at the same time."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

PORTS = range(20_000, 32_000)
"""Above those that Ray gives its workers, below those that the kernel gives to any socket without a port."""


@contextmanager
def reserved(kind: str, numbers: Iterable[int], usable: Callable[[int], bool] = lambda number: True) -> Iterator[int]:
    """One of the numbers, until the block or the process ends; it is reserved by a name that only one socket may have.

    A port cannot be reserved by a socket on it where another program, such as Ray, has to open it by number.
    """
    for number in numbers:
        with socket.socket(socket.AF_UNIX) as guard:
            if sys.platform == "linux":  # other systems have no such names without a file
                try:
                    guard.bind(f"\0adagrpo-tests-{kind}-{number}")
                except OSError:
                    continue
            if usable(number):
                yield number
                return
    raise OSError(f"no {kind} is free")


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """So many ports that nobody listens on."""
    numbers = random.Random().sample(PORTS, 1000)
    with ExitStack() as stack:
        yield [stack.enter_context(reserved("port", numbers, _is_free)) for _ in range(count)]


@contextmanager
def closed_address(host: str) -> Iterator[str]:
    """HOST:PORT at which nothing listens, nor can another program begin to."""
    with socket.socket() as deaf:
        deaf.bind((host, 0))
        yield f"{host}:{deaf.getsockname()[1]}"


@contextmanager
def silent_address(host: str) -> Iterator[str]:
    """HOST:PORT at which connections are taken and never answered."""
    with socket.create_server((host, 0)) as listening:
        yield f"{host}:{listening.getsockname()[1]}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
