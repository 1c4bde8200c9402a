"""How learner ranks find each other: at a store on rank 0's node, which listens on one address of it alone.

That of torch's own `env://` and `tcp://` listens on all addresses, and asks for no token.
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
"""Sockets of this process that no store has taken yet, by address and port."""


def listen(address: str) -> int:
    """Begin to listen on a free port of an address of this node; the store of rank 0, in this process, takes it over.

    So no other program can take the port before the store is there.
    """
    while _listening:  # of a run before, whose ranks had gathered already
        _listening.popitem()[1].close()
    made = socket.create_server((address, 0), family=_family(address))
    port = int(made.getsockname()[1])
    _listening[address, port] = made
    return port


def init_method(address: str, port: int) -> str:
    """What `torch.distributed.init_process_group` takes, beside rank and world size, to gather ranks there."""
    return f"{SCHEME}://{f'[{address}]' if ':' in address else address}:{port}"


def _gather(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """The store, this rank and the world size, as torch asks for them; it writes the latter two into the URL."""
    place = urlsplit(url)
    told = parse_qs(place.query)
    rank, world_size = int(told["rank"][0]), int(told["world_size"][0])
    host, port = str(place.hostname), int(place.port or 0)
    listening = None
    if rank == 0:
        made = _listening.pop((host, port), None) or socket.create_server((host, port), family=_family(host))
        listening = made.detach()
    yield TCPStore(host, port, world_size, rank == 0, timeout, master_listen_fd=listening), rank, world_size


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


register_rendezvous_handler(SCHEME, _gather)  # type: ignore[no-untyped-call]
