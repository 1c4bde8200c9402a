"""Ray: joining or starting a cluster, and the life of the actors on it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import AdaGRPOError, ResourceError
from adagrpo_ray.learner.actor import LearnerActor
from adagrpo_ray.placement import Hardware, Placement, address, local_hardware, place
from adagrpo_ray.preflight import Inputs
from adagrpo_ray.rollout.actor import RolloutActor

STOP_TIMEOUT_S = 20.0
MAX_REQUESTS = 4096  # that one rollout actor may have in flight


@dataclass(frozen=True)
class Actors:
    """Handles of everything that runs; `learners` by rank."""

    learners: tuple[Any, ...]
    rollouts: tuple[Any, ...]


@contextmanager
def connect(config: Config) -> Iterator[Placement]:
    """Be part of a Ray cluster, and know where the actors go; a cluster of our own ends with the block."""
    joined = address(config)
    if joined is None:
        hardware = local_hardware()
        placement = place(config, hardware, ours=True)
        ray.init(
            # CPUs are only a count to Ray; ours must be large enough for the actors on a small machine.
            num_cpus=max(int(hardware.cpus), math.ceil(placement.cpus)),
            num_gpus=int(hardware.gpus),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    else:
        try:
            ray.init(address=joined, log_to_driver=False, logging_level="ERROR")
        except ConnectionError as error:
            raise ResourceError(f"no Ray cluster at {joined!r} (run.ray_address or RAY_ADDRESS): {error}") from None
    try:
        if joined is not None:
            total = ray.cluster_resources()
            placement = place(config, Hardware(total.get("CPU", 0.0), total.get("GPU", 0.0)), ours=False)
        yield placement
    finally:
        ray.shutdown()


@contextmanager
def actors(config: Config, placement: Placement, inputs: Inputs) -> Iterator[Actors]:
    """Started actors that hold the same base model; all of them are gone after the block."""
    group = placement_group(placement.bundles())
    running = Actors((), ())
    try:
        if not group.wait(config.rollout.start_timeout_s):
            raise ResourceError(
                f"the cluster did not free {placement.cpus:g} CPUs and {placement.gpus:g} GPUs within "
                f"rollout.start_timeout_s={config.rollout.start_timeout_s:g}; wait for other jobs to end"
            )
        running = _create(placement, group)
        _start(config, running, inputs)
        yield running
    finally:
        _stop(running)
        remove_placement_group(group)


def _create(placement: Placement, group: Any) -> Actors:
    def options(bundle: int, cpus: float, gpus: float) -> dict[str, Any]:
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": where}

    ranks = placement.learner_ranks
    learner, rollout = ray.remote(LearnerActor), ray.remote(max_concurrency=MAX_REQUESTS)(RolloutActor)
    return Actors(
        learners=tuple(
            learner.options(**options(rank, placement.learner_cpus, placement.learner_gpus)).remote()
            for rank in range(ranks)
        ),
        rollouts=tuple(
            rollout.options(**options(ranks + i, placement.rollout_cpus, placement.rollout_gpus)).remote()
            for i in range(placement.rollout_actors)
        ),
    )


def _start(config: Config, running: Actors, inputs: Inputs) -> None:
    """Start everything side by side: engines load while the ranks find each other."""
    rollouts = [actor.start.remote(inputs.model_path, inputs.max_model_len, config) for actor in running.rollouts]
    begin(config, running, inputs)
    get(rollouts, timeout_s=config.rollout.start_timeout_s)


def begin(config: Config, running: Actors, inputs: Inputs) -> None:
    """A run from its start on the learners, on actors that may have done another one of the same base model."""
    master = get(running.learners[0].address.remote())
    learners = [
        actor.start.remote(config, rank, inputs.model_path, master) for rank, actor in enumerate(running.learners)
    ]
    get(learners, timeout_s=config.rollout.start_timeout_s)
    get(running.learners[0].attach.remote(inputs.prompts, running.rollouts))


def _stop(running: Actors) -> None:
    """Let every actor end its own processes, then end the actors."""
    farewells = [actor.stop.remote() for actor in (*running.learners, *running.rollouts)]
    ray.wait(farewells, num_returns=len(farewells), timeout=STOP_TIMEOUT_S) if farewells else None
    for actor in (*running.learners, *running.rollouts):
        ray.kill(actor)


def get(references: Any, timeout_s: float | None = None) -> Any:
    """`ray.get`, with errors of this library as themselves and everything else as an AdaGRPOError."""
    try:
        return ray.get(references, timeout=timeout_s)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, AdaGRPOError):
            raise cause from None
        raise AdaGRPOError(f"an actor failed unexpectedly: {error}") from error  # holds the actor's traceback
    except RayActorError as error:
        raise AdaGRPOError(f"an actor died: {error}") from error
    except GetTimeoutError:
        raise ResourceError(
            f"the actors did not start within rollout.start_timeout_s={timeout_s:g} s; raise it, or look into "
            "Ray's session folder for their logs"
        ) from None
