"""Joins a Ray cluster or starts a local one, and computes the placement of the actors on it."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import current_thread, main_thread
from typing import Any, TypeVar

import psutil
import ray

from adagrpo_ray.cluster.authentication import own_token
from adagrpo_ray.cluster.children import ChildGuard
from adagrpo_ray.cluster.environment import environment
from adagrpo_ray.cluster.joining import check_address, check_temporary_folders, ray_errors
from adagrpo_ray.cluster.network import loopback_alone
from adagrpo_ray.cluster.placement import Hardware, Placement, local_hardware, place
from adagrpo_ray.config.learner import LearnerSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ResourceError

T = TypeVar("T")


@contextmanager
def connect(
    config: Config, joined: str | None, patience_s: float = 0.0, *, learner: bool = True
) -> Iterator[Placement]:
    """Connect to the Ray cluster at `joined`, and compute the placement of the actors.

    If `joined` is None, start a local Ray that ends with the block. A program that was connected before stays
    connected. Without a `learner`, the placement has rollout actors only. Raises ResourceError if a joined cluster is
    too small for the actors, after waiting `patience_s` seconds for lost nodes to return.
    """
    with (
        own_token() if joined is None else nullcontext(),
        _connected(config, joined, patience_s, config.learner if learner else None) as placement,
    ):
        yield placement


@contextmanager
def _connected(
    config: Config, joined: str | None, patience_s: float, learner: LearnerSettings | None
) -> Iterator[Placement]:
    connected = ray.is_initialized()
    guard: ChildGuard | None = None
    if joined is None:
        hardware = local_hardware()
        placement = place(config.rollout, learner, hardware, ours=True)
        before = set(psutil.Process().children(recursive=True))
        check_temporary_folders()
        with environment(_threads(hardware)), loopback_alone(), _cleared(before), ray_errors(None):
            _init(
                address="local",  # or Ray would join a cluster that it finds running on this machine
                # CPUs are only a count for Ray, and must suffice for the actors on a small machine.
                num_cpus=max(int(hardware.cpus), math.ceil(placement.cpus)),
                num_gpus=int(hardware.gpus),
                resources={n: placement.total(n) for n in (*placement.rollout_resources, *placement.learner_resources)},
                include_dashboard=False,
                _metrics_export_port=config.tracking.prometheus_port,
            )
        guard = ChildGuard([p.pid for p in psutil.Process().children(recursive=True) if p not in before])
    elif not connected:
        with ray_errors(joined):
            _retry(lambda: check_address(joined), patience_s)
            _init(address=joined)
    try:
        if joined is not None:
            placement = _retry(lambda: place(config.rollout, learner, cluster_hardware(), ours=False), patience_s)
        yield placement
    finally:
        if joined is None or not connected:
            ray.shutdown()
        if guard is not None:
            guard.dismiss()


def _threads(hardware: Hardware) -> dict[str, str]:
    """Environment variables for a machine without GPUs, on whose cores generation and training take turns.

    By default an idle thread of OpenMP spins for a while, on a core that the other one needs.
    """
    return {} if hardware.gpus or "OMP_WAIT_POLICY" in os.environ else {"OMP_WAIT_POLICY": "PASSIVE"}


@contextmanager
def _cleared(before: set[psutil.Process]) -> Iterator[None]:
    """If the block fails, end the processes that it started: those that are not in `before`.

    A Ray that fails during its start leaves processes behind.
    """
    try:
        yield
    except BaseException:
        ray.shutdown()
        for process in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        raise


def _retry(action: Callable[[], T], patience_s: float) -> T:
    """Repeat an action while it raises ResourceError; raise that of the last time, after `patience_s` seconds."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return action()
        except ResourceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _init(**options: Any) -> None:
    """Call `ray.init` without its handler of SIGTERM, which would end the program at once."""
    before = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level="ERROR", **options)
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, before)


def cluster_hardware() -> Hardware:
    """The hardware of the joined cluster, including nodes that its autoscaler, if it has one, may still add."""
    from ray._private.state import state  # Ray's own libraries use it, too: there is no public way

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = dict(ray.cluster_resources())
    scaled = state.get_cluster_config()
    for group in scaled.node_group_configs if scaled is not None else ():
        nodes.append(dict(group.resources))
        most = group.max_count if group.max_count >= 0 else math.inf
        for name, amount in group.resources.items():
            total[name] = max(total.get(name, 0.0), amount * most)
    return Hardware(total.get("CPU", 0.0), total.get("GPU", 0.0), total, tuple(nodes))
