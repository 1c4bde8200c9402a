"""The address by which a node's actors find one another."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import ray


def use_node_address() -> str:
    """Have gloo and vLLM in this process use the address by which Ray knows the node, and return it.

    By themselves they ask what the host's name resolves to, which need not be an address of this node: in a container,
    or on a host with several networks. What the environment says already stays.
    """
    address: str = ray.util.get_node_ip_address()
    os.environ.setdefault("VLLM_HOST_IP", address)
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in (socket.AF_INET, socket.AF_INET6) and a.address == address for a in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return address


@contextmanager
def loopback_alone() -> Iterator[None]:
    """A Ray that the block starts listens on 127.0.0.1 alone, all of it; by itself it listens on every address."""
    from ray._private import ray_constants  # Ray does this on macOS and Windows, and has no option for it

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
