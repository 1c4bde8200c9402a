"""The store at which learner ranks find each other."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psutil
import pytest
from torch.distributed.rendezvous import rendezvous

import adagrpo_ray.learner.gather as gather


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_store_listens_on_one_address_only(address: str) -> None:
    try:
        port = gather.listen(address)
    except OSError:
        pytest.skip(f"this machine has no address {address}")
    with pytest.raises(OSError, match="in use"), socket.socket(gather._family(address)) as other:
        other.bind((address, port))  # no other program can take the port until the ranks have joined
    place, limit = gather.init_method(address, port), timedelta(seconds=30)
    with ThreadPoolExecutor() as threads:  # each waits for the other
        ranks = threads.map(lambda rank: next(rendezvous(place, rank, 2, timeout=limit)), (0, 1))
    (first, *one), (second, *other) = ranks
    assert (one, other) == ([0, 2], [1, 2])
    first.set("key", "value")
    assert second.get("key") == b"value"
    found = psutil.Process().net_connections("inet")
    assert [c.laddr.ip for c in found if (c.status, c.laddr.port) == ("LISTEN", port)] == [address]
