"""Creates the actors of a run on a Ray cluster, and ends them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from adagrpo_ray.cluster.deaths import DEATHS
from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.model import ModelSettings
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
def actors(
    config: Config, placement: Placement, inputs: Inputs, stop: Stop, home: str | None = None
) -> Iterator[Actors]:
    """Start the actors of a run, with the same base model; end all of them after the block.

    `home` is the run folder for the logs of vLLM; there are none without it.

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
        _start(config, placement, running, inputs, stop, home)
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


def _start(config: Config, placement: Placement, running: Actors, inputs: Inputs, stop: Stop, home: str | None) -> None:
    """Start all actors concurrently: engines load while the ranks find each other."""
    rank0 = running.learners[0]
    get(rank0.open.remote(config, placement, [running.model], inputs.max_model_len, home))
    if (
        placement.shared
    ):  # vLLM measures the free memory of the GPU at its start, so the learner must not load meanwhile
        get(rank0.ready.remote(), stop=stop)
    begin(config, running, inputs, stop)
    get(rank0.ready.remote(), stop=stop)


def begin(config: Config, running: Actors, inputs: Inputs, stop: Stop) -> None:
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
        except DEATHS as error:
            raise LearnerLostError(f"a learner rank died: {first_line(error)}") from error
        except RayError as error:
            raise AdaGRPOError(f"an actor failed unexpectedly: {type(error).__name__}: {first_line(error)}") from error


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
