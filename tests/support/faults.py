"""What can happen to a run on a cluster, one fault a function, and seeded plans of them."""

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
PATIENCE_S = 300.0  # for a target to be there, and for the step after a fault
GROUPS = 4  # of each step of `tests.support.program.settings`


@dataclass(frozen=True)
class Fault:
    """What to do after the run has ended `step` and scored so many groups of the next one."""

    kind: str
    step: int
    groups: int


def plan(steps: int, faults: int, seed: int) -> list[Fault]:
    """`faults` of all kinds in turn, in a shuffled order, after as many different steps but for the last two."""
    draw = random.Random(seed)
    kinds = [list(FAULTS)[number % len(FAULTS)] for number in range(faults)]
    draw.shuffle(kinds)
    after = sorted(draw.sample(range(1, steps - 1), faults))
    return [Fault(kind, step, draw.randrange(GROUPS)) for kind, step in zip(kinds, after, strict=True)]


class NotSurvivedError(Exception):
    """The run has ended, or has not got on in time."""


@dataclass
class Site:
    """The cluster and the program that runs on it."""

    cluster: Cluster
    learner: Any  # the node with the learner
    running: subprocess.Popen[bytes]
    folder: Path
    gate: Gate
    draw: random.Random
    leaving: list[Any] = field(default_factory=list)  # nodes that drain

    def step(self) -> int:
        """The last step that has ended."""
        return len(metrics(self.folder))

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """What the condition gives once it holds; NotSurvivedError where the run ends before."""
        end = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            if self.running.poll() is not None:
                raise NotSurvivedError(f"the run ended with {self.running.returncode} before {what}")
            if time.monotonic() > end:
                raise NotSurvivedError(f"{PATIENCE_S:g} s without {what}")
            time.sleep(0.05)
        return value

    def signal_one(self, number: signal.Signals, find: Callable[[], list[psutil.Process]], what: str) -> None:
        """Send it to one of the processes, as soon as there is one."""
        while True:
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                self.draw.choice(self.until(find, what)).send_signal(number)
                return

    def node(self) -> Any:
        """One of the nodes with a rollout actor alone, which the head is not."""
        stay = self.cluster.worker_nodes - {self.learner, *self.leaving}
        return self.draw.choice(sorted(stay, key=lambda node: str(node.node_id)))

    def see_off(self) -> None:
        """Take the nodes away that drained and have no rollout actor any more."""
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
    """A node says that it will go, and another one comes; `Site.see_off` takes it away when it is empty."""
    node = site.node()
    site.cluster.add_node(**ROLLOUT_NODE)
    drain(site.cluster, node.node_id)
    site.leaving.append(node)


def lose_node(site: Site) -> None:
    """A node is gone from one moment to the next, and another one comes."""
    site.cluster.remove_node(site.node(), allow_graceful=False)
    site.cluster.add_node(**ROLLOUT_NODE)


def lose_learner_node(site: Site) -> None:
    """The learner's node is gone, and with it whatever the learner had started; another one comes."""
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
    """Tell Ray that the node will be taken away, as a cloud does."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    accepted, why = GcsClient(address=cluster.address).drain_node(node_id, reason, "a test", 0)
    assert accepted, why


def children(pid: int | None = None) -> list[psutil.Process]:
    """The live processes under this one, or under the one of this number."""
    try:
        return [process for process in psutil.Process(pid).children(recursive=True) if title(process)]
    except psutil.NoSuchProcess:
        return []


def engines() -> list[psutil.Process]:
    """vLLM's engine processes, but for those that hang already, as an earlier fault has left them."""
    with suppress(psutil.NoSuchProcess):
        return [p for p in children() if is_engine(p) and p.status() != psutil.STATUS_STOPPED]
    return []


def titled(start: str) -> list[psutil.Process]:
    return [process for process in children() if title(process).startswith(start)]


def inject(site: Site, fault: Fault, point: int) -> dict[str, Any]:
    """Do it while the run waits at that point of its gate, and wait until it has got on by a step."""
    told: dict[str, Any] = {"kind": fault.kind, "step": fault.step, "seconds_to_next_step": None}
    try:
        site.until(lambda: site.gate.holds(point), f"step {fault.step}")
        site.see_off()
        step, began = site.step(), time.monotonic()
        FAULTS[fault.kind](site)
        site.gate.open(point)
        site.until(lambda: site.step() > step, f"the step after {step}")
        told["seconds_to_next_step"] = round(time.monotonic() - began, 1)
    except NotSurvivedError as error:
        told["error"] = str(error)
    print(json.dumps(told), flush=True)
    return told
