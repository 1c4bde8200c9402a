"""Where the actors go: a pure function of the configuration and of what the machine or cluster has."""

from __future__ import annotations

import os
from dataclasses import dataclass

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ResourceError


@dataclass(frozen=True)
class Hardware:
    """CPUs and GPUs of one machine or a whole cluster."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Placement:
    """Resources that Ray reserves for each actor; GPUs may be shares of one device."""

    rollout_actors: int
    rollout_cpus: float
    rollout_gpus: float
    learner_ranks: int
    learner_cpus: float
    learner_gpus: float

    @property
    def cpus(self) -> float:
        """CPUs of all actors together."""
        return self.rollout_actors * self.rollout_cpus + self.learner_ranks * self.learner_cpus

    @property
    def gpus(self) -> float:
        """GPUs of all actors together."""
        return self.rollout_actors * self.rollout_gpus + self.learner_ranks * self.learner_gpus

    @property
    def shared(self) -> bool:
        """Whether a rollout actor and a learner rank are on one GPU."""
        return 0 < self.learner_gpus < 1

    def bundles(self) -> list[dict[str, float]]:
        """The placement group's bundles: learner ranks first, then rollout actors."""
        learner = {"CPU": self.learner_cpus, "GPU": self.learner_gpus}
        rollout = {"CPU": self.rollout_cpus, "GPU": self.rollout_gpus}
        wanted = [learner] * self.learner_ranks + [rollout] * self.rollout_actors
        # Ray refuses empty bundles, and an entry of 0 asks for nothing.
        return [{k: v for k, v in b.items() if v > 0} or {"CPU": 0.001} for b in wanted]

    def describe(self) -> str:
        """One line a kind of actor."""
        return "\n".join(
            f"{count} x {kind}: {cpus:g} CPU, {gpus:g} GPU each"
            for count, kind, cpus, gpus in (
                (self.rollout_actors, "rollout actor", self.rollout_cpus, self.rollout_gpus),
                (self.learner_ranks, "learner rank", self.learner_cpus, self.learner_gpus),
            )
        )


def place(config: Config, hardware: Hardware, *, ours: bool) -> Placement:
    """Who gets what. Without GPUs all run on CPUs; one GPU is shared by all; else every actor has its own.

    `ours` says that we start Ray on this machine ourselves, where CPUs are only a count that we choose;
    an existing cluster has what it has. Raises ResourceError where the actors can never be placed.
    """
    r, s = config.rollout, config.learner
    on_gpu = hardware.gpus > 0
    shared = on_gpu and hardware.gpus < 2
    if not on_gpu and r.tensor_parallel > 1:
        raise ResourceError(f"rollout.tensor_parallel={r.tensor_parallel} needs GPUs, and there are none; set it to 1")
    actor_gpus, rank_gpus = (float(r.tensor_parallel), 1.0) if on_gpu else (0.0, 0.0)
    if shared:
        if r.actors > 1 or s.ranks > 1 or r.tensor_parallel > 1:
            raise ResourceError(
                f"rollout.actors={r.actors}, rollout.tensor_parallel={r.tensor_parallel} and "
                f"learner.ranks={s.ranks} need more than the 1 GPU there is; set all three to 1"
            )
        actor_gpus = rank_gpus = 0.5
    placement = Placement(r.actors, r.cpus, actor_gpus, s.ranks, s.cpus, rank_gpus)
    if r.sleep and not shared:
        raise ResourceError(
            "rollout.sleep=true makes room on a GPU that a rollout actor and a learner rank share, and here "
            f"{'each has its own' if on_gpu else 'there is none'}; leave it at null"
        )
    if placement.gpus > hardware.gpus:
        raise ResourceError(
            f"rollout.actors={r.actors} x {actor_gpus:g} and learner.ranks={s.ranks} need {placement.gpus:g} GPUs, "
            f"there are {hardware.gpus:g}; lower rollout.actors, rollout.tensor_parallel or learner.ranks"
        )
    if not ours and placement.cpus > hardware.cpus:
        raise ResourceError(
            f"the actors need {placement.cpus:g} CPUs (rollout.actors={r.actors} x rollout.cpus={r.cpus:g} and "
            f"learner.ranks={s.ranks} x learner.cpus={s.cpus:g}), the cluster has {hardware.cpus:g}; lower one of them"
        )
    return placement


def address(config: Config) -> str | None:
    """The cluster to join; None where we start our own."""
    return config.run.ray_address or os.environ.get("RAY_ADDRESS")


def local_hardware() -> Hardware:
    """This machine's CPUs and GPUs."""
    import torch

    return Hardware(float(os.cpu_count() or 1), float(torch.cuda.device_count()))
