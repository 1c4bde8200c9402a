"""Joins or starts a Ray cluster, and creates and ends the actors of a run on it."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from threading import current_thread, main_thread
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from adagrpo_ray.cluster.authentication import own_token
from adagrpo_ray.cluster.children import ChildGuard
from adagrpo_ray.cluster.environment import environment
from adagrpo_ray.cluster.joining import check_address, check_temporary_folders, ray_errors
from adagrpo_ray.cluster.network import loopback_alone
from adagrpo_ray.cluster.placement import Hardware, Placement, local_hardware, place
from adagrpo_ray.config.learner import LearnerSettings
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import AdaGRPOError, LearnerLostError, ResourceError, StoppedError, first_line
from adagrpo_ray.learner.actor import LearnerActor
from adagrpo_ray.model.gguf_file import is_gguf
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.model.pretrained import TINY
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.preflight import Inputs

STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Actors:
    """Handles of the actors of a run.

    - `learners`: the learner ranks, in their order. Rank 0 owns the rollout actors.
    - `model`: a reference to ModelFiles.
    """

    learners: tuple[Any, ...]
    model: Any


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
            _init(address=_answering(joined, time.monotonic() + patience_s))
    try:
        if joined is not None:
            placement = _place_on_cluster(config.rollout, learner, time.monotonic() + patience_s)
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


def _answering(joined: str, deadline: float) -> str:
    """Wait until the cluster to join answers, and return its address. Raises ResourceError after the deadline."""
    while True:
        try:
            check_address(joined)
            return joined
        except ResourceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _place_on_cluster(rollout: RolloutSettings, learner: LearnerSettings | None, deadline: float) -> Placement:
    while True:
        try:
            return place(rollout, learner, cluster_hardware(), ours=False)
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


@contextmanager
def actors(config: Config, placement: Placement, inputs: Inputs, stop: Stop | None = None) -> Iterator[Actors]:
    """Start the actors of a run, with the same base model; end all of them after the block.

    Raises StoppedError if `stop` is set while they start, and ResourceError if they have no room in time.
    """
    group = placement_group(placement.bundles())
    running = Actors((), None)
    try:
        if not group.wait(config.rollout.start_timeout_s):
            raise ResourceError(
                f"the cluster did not free {placement.learner_ranks} x {placement.learner} for the learner ranks within"
                f" rollout.start_timeout_s={config.rollout.start_timeout_s:g}; wait for other jobs to end"
            )
        running = _create(config, placement, inputs, group)
        _start(config, placement, running, inputs, stop)
        yield running
    finally:
        _stop(running)
        remove_placement_group(group)


def _create(config: Config, placement: Placement, inputs: Inputs, group: Any) -> Actors:
    learner = ray.remote(LearnerActor)
    return Actors(
        learners=tuple(
            learner.options(
                num_cpus=placement.learner_cpus,
                num_gpus=placement.learner_gpus,
                resources=dict(placement.learner_resources),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            ).remote()
            for rank in range(placement.learner_ranks)
        ),
        model=put_model(config.model, inputs),
    )


def put_model(model: ModelSettings, inputs: Inputs) -> Any:
    """Put the ModelFiles of the base model into the object store, for actors on any node; returns the reference."""
    path, name = inputs.model_path, model.path
    if name == TINY:
        return ray.put(replace(ModelFiles.carry(path), template=inputs.template))
    return ray.put(ModelFiles(path, gguf=name if is_gguf(name) else None, template=inputs.template))


def _start(config: Config, placement: Placement, running: Actors, inputs: Inputs, stop: Stop | None) -> None:
    """Start all actors concurrently: engines load while the ranks find each other."""
    rank0 = running.learners[0]
    get(rank0.open.remote(config, placement, [running.model], inputs.max_model_len))
    if (
        placement.shared
    ):  # vLLM measures the free memory of the GPU at its start, so the learner must not load meanwhile
        get(rank0.ready.remote(), stop=stop)
    begin(config, running, inputs, stop)
    get(rank0.ready.remote(), stop=stop)


def begin(config: Config, running: Actors, inputs: Inputs, stop: Stop | None = None) -> None:
    """Begin a run on the learners; the actors may have done another run of the same base model."""
    master = get(running.learners[0].address.remote())
    learners = [actor.start.remote(config, rank, running.model, master) for rank, actor in enumerate(running.learners)]
    get(learners, timeout_s=config.rollout.start_timeout_s, stop=stop)
    get(running.learners[0].attach.remote(inputs.prompts, inputs.given))


def _stop(running: Actors) -> None:
    """Have every actor end its own processes, then end the actors."""
    farewells = [actor.stop.remote() for actor in running.learners]
    ray.wait(farewells, num_returns=len(farewells), timeout=STOP_TIMEOUT_S) if farewells else None
    for actor in running.learners:
        ray.kill(actor)


def get(references: Any, timeout_s: float = math.inf, stop: Stop | None = None) -> Any:
    """Call `ray.get`; errors of this library are raised as they are, and others as an AdaGRPOError.

    Raises StoppedError if `stop` is set meanwhile, ResourceError after `timeout_s` seconds, and LearnerLostError if an
    actor died.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            left = deadline - time.monotonic()
            return ray.get(references, timeout=None if stop is None and left == math.inf else max(0, min(left, 1.0)))
        except GetTimeoutError:
            if stop is not None and stop.is_set():
                raise StoppedError("stopped as asked, before the first step") from None
            if time.monotonic() >= deadline:
                raise ResourceError(
                    f"the actors did not start within rollout.start_timeout_s={timeout_s:g} s; raise it, or read "
                    "their logs in Ray's session folder"
                ) from None
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, AdaGRPOError):
                raise cause from None
            raise AdaGRPOError(f"an actor failed unexpectedly: {error}") from error  # has the actor's traceback
        except RayActorError as error:
            raise LearnerLostError(f"a learner rank died: {first_line(error)}") from error


def any_dead(actors: Iterable[Any], within_s: float) -> bool:
    """Whether Ray reports, within `within_s` seconds, that one of the actors is dead."""
    from ray._private.state import actors as state_of  # the public way needs a dashboard, which a local Ray lacks

    deadline = time.monotonic() + within_s
    while True:
        if any(state_of(actor._actor_id.hex()).get("State") == "DEAD" for actor in actors):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
