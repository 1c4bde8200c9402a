"""Faults that can happen to a run on a cluster, one function for each, and seeded plans of faults."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.support.held import Gate
from tests.support.program import is_engine, metrics, title

ROLLOUT_NODE: dict[str, Any] = {"num_cpus": 1, "resources": {"rollout": 1}}
LEARNER_NODE: dict[str, Any] = {"num_cpus": 1, "resources": {"learner": 1}}
PATIENCE_S = 300.0  # limit for the target of a fault to exist, and for the step after a fault
GROUPS = 4  # groups of each step with `tests.support.program.settings`


@dataclass(frozen=True)
class Fault:
    """A fault to inject after the run has finished `step` and has scored `groups` groups of the next step."""

    kind: str
    step: int
    groups: int


def plan(steps: int, faults: int, seed: int) -> list[Fault]:
    """Plan `faults` faults, of all kinds equally often and in random order, after different steps but the last two."""
    draw = random.Random(seed)
    kinds = [list(FAULTS)[number % len(FAULTS)] for number in range(faults)]
    draw.shuffle(kinds)
    after = sorted(draw.sample(range(1, steps - 1), faults))
    return [Fault(kind, step, draw.randrange(GROUPS)) for kind, step in zip(kinds, after, strict=True)]


class NotSurvivedError(Exception):
    """The run has ended, or did not make progress in time."""


@dataclass
class Site:
    """The cluster, and the program that runs on it.

    learner: the node with the learner.
    leaving: nodes that drain.
    """

    cluster: Cluster
    learner: Any
    running: subprocess.Popen[bytes]
    folder: Path
    gate: Gate
    draw: random.Random
    leaving: list[Any] = field(default_factory=list)

    def step(self) -> int:
        """The last finished step."""
        return len(metrics(self.folder))

    def until(self, condition: Callable[[], Any], name: str) -> Any:
        """Wait until the condition is true; its value. Raises NotSurvivedError if the run ends or time is up before."""
        end = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            if self.running.poll() is not None:
                raise NotSurvivedError(f"the run ended with {self.running.returncode} before {name}")
            if time.monotonic() > end:
                raise NotSurvivedError(f"{PATIENCE_S:g} s without {name}")
            time.sleep(0.05)
        return value

    def signal_one(self, number: signal.Signals, find: Callable[[], list[psutil.Process]], name: str) -> None:
        """Send the signal to one of the processes, as soon as there is one."""
        while True:
            with suppress(psutil.NoSuchProcess):  # it ended at the same time
                self.draw.choice(self.until(find, name)).send_signal(number)
                return

    def node(self) -> Any:
        """A random node that has only a rollout actor; never the head."""
        stay = self.cluster.worker_nodes - {self.learner, *self.leaving}
        return self.draw.choice(sorted(stay, key=lambda node: str(node.node_id)))

    def see_off(self) -> None:
        """Remove the draining nodes that have no rollout actor any more."""
        for node in tuple(self.leaving):
            raylet = node.all_processes["raylet"][0].process.pid
            if not any(title(process).startswith("ray::RolloutActor") for process in children(raylet)):
                self.cluster.remove_node(node)
                self.leaving.remove(node)


def kill_rollout_actor(site: Site) -> None:
    site.signal_one(signal.SIGKILL, lambda: titled("ray::RolloutActor"), "a rollout actor")


def kill_engine(site: Site) -> None:
    site.signal_one(signal.SIGKILL, engines, "an engine")


def stop_engine(site: Site) -> None:
    site.signal_one(signal.SIGSTOP, engines, "an engine")


def kill_learner(site: Site) -> None:
    site.signal_one(signal.SIGKILL, lambda: titled("ray::LearnerActor"), "a learner")


def kill_scorer(site: Site) -> None:
    def scorers() -> list[psutil.Process]:
        return [p for learner in titled("ray::LearnerActor") for p in children(learner.pid) if "spawn_main" in title(p)]

    site.signal_one(signal.SIGKILL, scorers, "a scoring process")


def drain_node(site: Site) -> None:
    """Drain a node, and add another one; `Site.see_off` removes the drained node when it is empty."""
    node = site.node()
    site.cluster.add_node(**ROLLOUT_NODE)
    drain(site.cluster, node.node_id)
    site.leaving.append(node)


def lose_node(site: Site) -> None:
    """Remove a node without warning, and add another one."""
    site.cluster.remove_node(site.node(), allow_graceful=False)
    site.cluster.add_node(**ROLLOUT_NODE)


def lose_learner_node(site: Site) -> None:
    """Remove the learner's node with all processes of the learner, and add another one."""
    site.cluster.remove_node(site.learner, allow_graceful=False)
    site.learner = site.cluster.add_node(**LEARNER_NODE)


FAULTS: dict[str, Callable[[Site], None]] = {
    "rollout actor killed": kill_rollout_actor,
    "engine killed": kill_engine,
    "engine hangs": stop_engine,
    "learner killed": kill_learner,
    "scoring process killed": kill_scorer,
    "node drained": drain_node,
    "node lost": lose_node,
    "learner's node lost": lose_learner_node,
}


def drain(cluster: Cluster, node_id: str) -> None:
    """Announce to Ray that the node will be removed, as a cloud does."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    accepted, why = GcsClient(address=cluster.address).drain_node(node_id, reason, "a test", 0)
    assert accepted, why


def children(pid: int | None = None) -> list[psutil.Process]:
    """The live descendants of this process, or of the process `pid`."""
    try:
        return [process for process in psutil.Process(pid).children(recursive=True) if title(process)]
    except psutil.NoSuchProcess:
        return []


def engines() -> list[psutil.Process]:
    """vLLM's engine processes, without those that an earlier fault has stopped."""
    with suppress(psutil.NoSuchProcess):
        return [p for p in children() if is_engine(p) and p.status() != psutil.STATUS_STOPPED]
    return []


def titled(start: str) -> list[psutil.Process]:
    return [process for process in children() if title(process).startswith(start)]


def inject(site: Site, fault: Fault, point: int) -> dict[str, Any]:
    """Inject the fault while the run waits at this point of its gate, and wait for the next step; the result."""
    result: dict[str, Any] = {"kind": fault.kind, "step": fault.step, "seconds_to_next_step": None}
    try:
        site.until(lambda: site.gate.holds(point), f"step {fault.step}")
        site.see_off()
        step, began = site.step(), time.monotonic()
        FAULTS[fault.kind](site)
        site.gate.open(point)
        site.until(lambda: site.step() > step, f"the step after {step}")
        result["seconds_to_next_step"] = round(time.monotonic() - began, 1)
    except NotSurvivedError as error:
        result["error"] = str(error)
    print(json.dumps(result), flush=True)
    return result
