"""Placement of the actors, as a pure function of the configuration and of the hardware."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from adagrpo_ray.config.learner import LearnerSettings
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.config.run_settings import RunSettings
from adagrpo_ray.errors import ResourceError


@dataclass(frozen=True)
class Hardware:
    """CPUs, GPUs and custom Ray resources of one machine or a whole cluster.

    `nodes` has the resources of a cluster's nodes by Ray's names, one mapping per kind of node. It is empty if they are
    unknown.
    """

    cpus: float
    gpus: float
    resources: Mapping[str, float] = field(default_factory=dict)
    nodes: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class Placement:
    """Resources that Ray reserves for each actor. A number of GPUs below 1 is a share of one device."""

    rollout_actors: int
    rollout_cpus: float
    rollout_gpus: float
    learner_ranks: int
    learner_cpus: float
    learner_gpus: float
    rollout_resources: Mapping[str, float] = field(default_factory=dict)
    learner_resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def cpus(self) -> float:
        """CPUs of all actors together."""
        return self.total("CPU")

    @property
    def gpus(self) -> float:
        """GPUs of all actors together."""
        return self.total("GPU")

    @property
    def shared(self) -> bool:
        """Whether a rollout actor and a learner rank are on one GPU."""
        return self.learner_ranks > 0 and 0 < self.learner_gpus < 1

    @property
    def rollout(self) -> dict[str, float]:
        """Resources of one rollout actor, by Ray's names."""
        return {"CPU": self.rollout_cpus, "GPU": self.rollout_gpus, **self.rollout_resources}

    @property
    def learner(self) -> dict[str, float]:
        """Resources of one learner rank, by Ray's names."""
        return {"CPU": self.learner_cpus, "GPU": self.learner_gpus, **self.learner_resources}

    def bundles(self) -> list[dict[str, float]]:
        """Return the bundles of the placement group, one per learner rank."""
        # Ray refuses empty bundles, and an entry of 0 reserves nothing.
        return [{k: v for k, v in self.learner.items() if v > 0} or {"CPU": 0.001}] * self.learner_ranks

    def total(self, resource: str) -> float:
        """Return the amount of a resource that all actors take together."""
        return self.rollout_actors * self.rollout.get(resource, 0) + self.learner_ranks * self.learner.get(resource, 0)

    def lines(self) -> tuple[str, ...]:
        """Return a description of each kind of actor."""
        return tuple(
            f"{count} x {kind}: {', '.join(f'{amount:g} {name}' for name, amount in takes.items())} each"
            for count, kind, takes in (
                (self.rollout_actors, "rollout actor", self.rollout),
                (self.learner_ranks, "learner rank", self.learner),
            )
            if count
        )


def place(rollout: RolloutSettings, learner: LearnerSettings | None, hardware: Hardware, *, ours: bool) -> Placement:
    """Return the placement of the actors: on CPUs if there are no GPUs, all on one GPU, or each with GPUs of its own.

    `ours`: the run starts Ray on this machine, so CPUs and custom resources are not limited. Without a `learner` there
    are rollout actors only, which share no GPU. Raises ResourceError if the actors can never be placed.
    """
    r, s = rollout, learner or LearnerSettings()
    ranks = s.ranks if learner else 0
    on_gpu = hardware.gpus > 0
    shared = on_gpu and learner is not None and hardware.gpus < 2
    if not on_gpu and r.tensor_parallel_size > 1:
        raise ResourceError(
            f"rollout.tensor_parallel_size={r.tensor_parallel_size} needs GPUs, and there are none; set it to 1"
        )
    actor_gpus, rank_gpus = (float(r.tensor_parallel_size), 1.0) if on_gpu else (0.0, 0.0)
    if shared:
        if r.actors > 1 or s.ranks > 1 or r.tensor_parallel_size > 1:
            raise ResourceError(
                f"rollout.actors={r.actors}, rollout.tensor_parallel_size={r.tensor_parallel_size} and "
                f"learner.ranks={s.ranks} need more than the 1 GPU there is; set all three to 1"
            )
        actor_gpus = rank_gpus = 0.5
    of_ranks = dict(s.resources) if learner else {}
    placement = Placement(r.actors, r.cpus, actor_gpus, ranks, s.cpus, rank_gpus, dict(r.resources), of_ranks)
    if r.sleep and not shared:
        raise ResourceError(
            "rollout.sleep=true makes room on a GPU that a rollout actor and a learner rank share, and here "
            f"{'each has its own' if on_gpu else 'there is none'}; leave it at null"
        )
    and_ranks, or_ranks = (f" and learner.ranks={ranks}", " or learner.ranks") if learner else ("", "")
    if placement.gpus > hardware.gpus:
        raise ResourceError(
            f"rollout.actors={r.actors} x {actor_gpus:g}{and_ranks} need {placement.gpus:g} GPUs, "
            f"there are {hardware.gpus:g}; lower rollout.actors, rollout.tensor_parallel_size{or_ranks}"
        )
    if not ours and placement.cpus > hardware.cpus:
        raise ResourceError(
            f"the actors need {placement.cpus:g} CPUs (rollout.actors={r.actors} x rollout.cpus={r.cpus:g}{and_ranks}"
            f"{f' x learner.cpus={s.cpus:g}' if learner else ''}), the cluster has {hardware.cpus:g}; lower one of them"
        )
    for name in {**r.resources, **of_ranks} if not ours else ():
        if placement.total(name) > hardware.resources.get(name, 0.0):
            raise ResourceError(
                f"the actors need {placement.total(name):g} of the custom resource {name!r} ("
                f"rollout.resources={r.resources} x rollout.actors={r.actors}"
                f"{f', learner.resources={s.resources} x learner.ranks={s.ranks}' if learner else ''}), "
                f"the cluster has {hardware.resources.get(name, 0.0):g}; start nodes with ray start "
                f"--resources='{{\"{name}\": 1}}', or correct the setting"
            )
    kinds = (
        ("rollout actor", placement.rollout, "rollout.cpus or rollout.tensor_parallel_size"),
        ("learner rank", placement.learner, "learner.cpus"),
    )
    for kind, takes, keys in kinds if learner else kinds[:1]:
        if hardware.nodes and not any(all(node.get(k, 0.0) >= v for k, v in takes.items()) for node in hardware.nodes):
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in takes.items() if amount)
            raise ResourceError(
                f"no node of the cluster has the resources of one {kind} ({wanted}), and it cannot be split; lower "
                f"{keys}, or add larger nodes"
            )
    return placement


def address(run: RunSettings) -> str | None:
    """Return the cluster to join; None to start a Ray ('local'). RAY_ADDRESS overrides 'auto', as in Ray."""
    variable = os.environ.get("RAY_ADDRESS", "").strip()
    named = (run.ray_address or "").strip()
    if named in ("", "auto"):
        named = variable or named
    return None if named in ("", "local") else named


def local_hardware() -> Hardware:
    """Return the CPUs and GPUs of this machine."""
    import torch

    return Hardware(float(os.cpu_count() or 1), float(torch.cuda.device_count()))
