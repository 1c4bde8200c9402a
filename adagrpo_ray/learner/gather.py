"""The store through which the learner ranks find each other; it listens on one address of rank 0's node.

The store of torch's `env://` and `tcp://` listens on all addresses, and needs no token.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import register_rendezvous_handler

SCHEME = "adagrpo"


_listening: dict[tuple[str, int], socket.socket] = {}
"""Sockets of this process that no store has taken over yet, by address and port."""


def listen(address: str) -> int:
    """Listen on a free port of an address of this node, and return the port.

    The store of rank 0, in this process, takes the socket over. So no other program can take the port before the store
    exists.
    """
    while _listening:  # left over from a run whose ranks had joined before
        _listening.popitem()[1].close()
    server = socket.create_server((address, 0), family=_family(address))
    port = int(server.getsockname()[1])
    _listening[address, port] = server
    return port


def init_method(address: str, port: int) -> str:
    """The `init_method` of `torch.distributed.init_process_group` that gathers the ranks at this address and port."""
    return f"{SCHEME}://{f'[{address}]' if ':' in address else address}:{port}"


def _gather(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """The rendezvous handler: the store, this rank and the world size. torch writes the latter two into the URL."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    rank, world_size = int(query["rank"][0]), int(query["world_size"][0])
    host, port = str(parts.hostname), int(parts.port or 0)
    listening = None
    if rank == 0:
        server = _listening.pop((host, port), None) or socket.create_server((host, port), family=_family(host))
        listening = server.detach()
    yield TCPStore(host, port, world_size, rank == 0, timeout, master_listen_fd=listening), rank, world_size


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


register_rendezvous_handler(SCHEME, _gather)  # type: ignore[no-untyped-call]
