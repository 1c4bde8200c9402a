"""Network addresses: that of a node for its actors, and that of a Ray that starts here."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import ray


def use_node_address() -> str:
    """Make gloo and vLLM in this process use the address by which Ray knows the node, and return it.

    By default they resolve the host's name. In a container, or on a host with several networks, this may not be an
    address of the node. Variables that are set already are kept.
    """
    address: str = ray.util.get_node_ip_address()
    os.environ.setdefault("VLLM_HOST_IP", address)
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in (socket.AF_INET, socket.AF_INET6) and a.address == address for a in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return address


@contextmanager
def loopback_alone() -> Iterator[None]:
    """Make a Ray that starts within the block listen on 127.0.0.1 only. By default it listens on every address."""
    from ray._private import ray_constants  # Ray does this on macOS and Windows, and has no option for it

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
