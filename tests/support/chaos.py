"""Compares a run under faults with the same run without faults: python -m tests.support.chaos

Both runs are launch/train.py on three Ray nodes of this machine: a head with a rollout actor, a node with another one,
and a node with the learner. A seeded plan has the step and the group of each fault. The run waits there for its fault,
and the next fault comes after at least one more step. Writes runs/chaos/summary.json. Exits with 1 if a fault was not
survived, a group was lost, a process was left behind, or the two runs are not identical to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.support.faults import (
    LEARNER_NODE,
    PATIENCE_S,
    ROLLOUT_NODE,
    Fault,
    NotSurvivedError,
    Site,
    children,
    inject,
    plan,
)
from tests.support.held import Gate
from tests.support.program import ENDING_S, metrics, settings, title

OUT = Path("runs/chaos")
GATE = Gate(OUT.resolve() / "gate")
STALL_TIMEOUT_S = 20  # ten times the time of a step
OPTIONS = [
    "checkpoint.every=1",
    "run.max_restarts=1000",
    "rollout.actors=2",
    "rollout.max_restarts=1000",
    "rollout.resources.rollout=1",
    "rollout.start_timeout_s=180",
    f"rollout.stall_timeout_s={STALL_TIMEOUT_S}",
    "learner.resources.learner=1",
]
FLEET = ("rollout_actors", "rollout_restarts")  # metrics that a fault may change


@dataclass
class Watch:
    """Records all descendants of this process since `begin`."""

    seen: set[psutil.Process] = field(default_factory=set)

    @contextmanager
    def begin(self) -> Iterator[None]:
        ended = Event()

        def poll() -> None:
            while not ended.wait(0.3):
                self.seen |= set(children())

        thread = Thread(target=poll)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def left(self) -> list[str]:
        """The titles of those that do not end by themselves. Kills them."""
        _, alive = psutil.wait_procs(self.seen, timeout=ENDING_S)
        titles = [title(process) for process in alive if title(process)]  # a zombie has none
        for process in alive:
            process.kill()
        return titles


def run(cluster: Cluster, learner: Any, name: str, steps: int, faults: list[Fault], seed: int) -> dict[str, Any]:
    """Run to the end under these faults; the seconds, the exit code, and the result of each fault."""
    folder = (OUT / name).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "launch/train.py", "--config", "launch/configs/tiny-cpu.yaml", *settings(folder, steps)]
    command += [*OPTIONS, *GATE.settings, f"run.ray_address={cluster.address}"]
    GATE.close(folder / "run" / "metrics.jsonl", *((fault.step, fault.groups) for fault in faults))
    began, results = time.monotonic(), list[dict[str, Any]]()
    with (folder / "output").open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as running:
        site = Site(cluster, learner, running, folder / "run", GATE, random.Random(seed))
        try:
            for point, fault in enumerate(faults):
                results += [inject(site, fault, point)]
            running.wait(timeout=PATIENCE_S + steps * STALL_TIMEOUT_S)
        except NotSurvivedError as error:
            print(f"{name}: {error}", flush=True)
        finally:
            running.kill()
    return {"seconds": time.monotonic() - began, "code": running.returncode, "faults": results}


def accounted(records: list[dict[str, Any]]) -> int:
    """The number of groups of a run, added up by their outcome; `groups_dropped` are those that waited too long."""
    ended = sum(r["groups_ready"] + r["groups_exhausted"] + r["groups_dropped"] for r in records)
    return int(ended + records[-1]["groups_waiting"]) if records else 0


def without_fleet(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in FLEET} for record in records]


def compare(alone: dict[str, Any], disturbed: dict[str, Any], left: list[str]) -> dict[str, Any]:
    """The content of summary.json."""
    before, after = (metrics(OUT / name / "run") for name in ("alone", "disturbed"))
    adapters = [OUT / name / "run" / "adapter" / "adapter_model.safetensors" for name in ("alone", "disturbed")]
    faults = disturbed["faults"]
    return {
        "steps": len(after),
        "faults_injected": len(faults),
        "faults_survived": sum(fault["seconds_to_next_step"] is not None for fault in faults),
        "groups_lost": accounted(before) - accounted(after),
        "processes_left": len(left),
        "left": left,
        "metrics_equal": without_fleet(before) == without_fleet(after) != [],
        "adapter_equal": all(a.exists() for a in adapters) and len({a.read_bytes() for a in adapters}) == 1,
        "exit_codes": [alone["code"], disturbed["code"]],
        "seconds_alone": round(alone["seconds"], 1),
        "seconds": round(disturbed["seconds"], 1),
        "faults": faults,
    }


def table(summary: dict[str, Any]) -> str:
    lines = [f"{'step':>5}  {'fault':24}{'seconds to the next step':>26}"]
    lines += [
        f"{f['step']:5}  {f['kind']:24}{f['seconds_to_next_step'] or f['error']!s:>26}" for f in summary["faults"]
    ]
    names = ("faults_injected", "faults_survived", "groups_lost", "processes_left", "metrics_equal", "adapter_equal")
    return "\n".join([*lines, *(f"{name.replace('_', ' ')}: {summary[name]}" for name in names)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="steps of each of the two runs")
    parser.add_argument("--faults", type=int, default=16, help="at most two less than the steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the plan")
    given = parser.parse_args()
    faults = plan(given.steps, given.faults, given.seed)
    # As in the tests: no process uses all cores or has a low priority, and there are no requests to the Hub.
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
    GATE.folder.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(GATE.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    watch = Watch()
    with watch.begin():
        head = {**ROLLOUT_NODE, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(**ROLLOUT_NODE)
            learner = cluster.add_node(**LEARNER_NODE)
            alone = run(cluster, learner, "alone", given.steps, [], given.seed)
            disturbed = run(cluster, learner, "disturbed", given.steps, faults, given.seed)
        finally:
            cluster.shutdown()
    summary = compare(alone, disturbed, watch.left())
    (OUT / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(table(summary))
    survived = summary["faults_injected"] == summary["faults_survived"] == len(faults)
    alike = summary["metrics_equal"] and summary["adapter_equal"] and summary["groups_lost"] == 0
    return 0 if survived and alike and summary["exit_codes"] == [0, 0] and not summary["processes_left"] else 1


if __name__ == "__main__":
    sys.exit(main())
