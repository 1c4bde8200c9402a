"""Reserves ports and addresses, so that no other test process of this machine uses them at the same time."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

PORTS = range(20_000, 32_000)
"""Above the ports of Ray's workers, and below the kernel's ephemeral ports."""


@contextmanager
def reserved(kind: str, numbers: Iterable[int], usable: Callable[[int], bool] = lambda number: True) -> Iterator[int]:
    """Reserve one of the numbers until the block or the process ends, by a socket name that is unique on the machine.

    A socket on the port itself would prevent another program, such as Ray, from opening it.
    """
    for number in numbers:
        with socket.socket(socket.AF_UNIX) as guard:
            if sys.platform == "linux":  # other systems have no abstract socket names
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
    """Reserve `count` free ports."""
    numbers = random.Random().sample(PORTS, 1000)
    with ExitStack() as stack:
        yield [stack.enter_context(reserved("port", numbers, _is_free)) for _ in range(count)]


@contextmanager
def closed_address(host: str) -> Iterator[str]:
    """HOST:PORT at which no program listens, or can begin to."""
    with socket.socket() as bound:
        bound.bind((host, 0))
        yield f"{host}:{bound.getsockname()[1]}"


@contextmanager
def silent_address(host: str) -> Iterator[str]:
    """HOST:PORT at which connections are accepted and never answered."""
    with socket.create_server((host, 0)) as listening:
        yield f"{host}:{listening.getsockname()[1]}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
