"""A check that the nodes of a cluster share the run folder."""

from __future__ import annotations

import time
from contextlib import suppress
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adagrpo_ray.errors import AdaGRPOError, ResourceError, first_line
from adagrpo_ray.storage.places import clear, find, leave

TIMEOUT_S = 120.0
LOST_WITHIN_S = 40.0
"""Ray takes half a minute to notice that a node is gone."""


def check_shared(folder: str) -> None:
    """Check that every node of the joined cluster reads and writes in `folder`, a path or URL.

    Raises ResourceError, which names the nodes that do not see a file of this process, or whose files this process does
    not see. A node that is lost during the check is ignored.
    """
    name, nodes = f".probe-{uuid4().hex}", _alive()
    leave(folder, name, name)
    answers = {
        node: ray.remote(_answer)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(folder, name, f"{name}-{node}")
        for node in nodes
    }
    problems = []
    try:
        for node, answer in answers.items():
            try:
                problem = ray.get(answer, timeout=TIMEOUT_S)
            except RayError as error:
                if _is_lost(node):
                    continue
                problem = first_line(error)
            if problem is None and find(folder, f"{name}-{node}") != name:
                problem = "writes files that are not seen from here"
            if problem is not None:
                problems.append(f"node {nodes[node]} {problem}")
    finally:
        for left in (name, *(f"{name}-{node}" for node in nodes)):
            with suppress(AdaGRPOError):
                clear(folder, left)
    if problems:
        raise ResourceError(
            f"the run folder {folder!r} is not one place for the whole cluster ({'; '.join(problems)}); set "
            "run.output_dir to a folder that all nodes share, or to a URL such as s3://bucket/path"
        )


def _alive() -> dict[str, str]:
    """Return the names of the nodes that are alive, by id."""
    return {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}


def _is_lost(node: str) -> bool:
    """Return whether Ray considers the node lost, waiting for the time that Ray needs to notice."""
    deadline = time.monotonic() + LOST_WITHIN_S
    while node in _alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _answer(folder: str, name: str, reply: str) -> str | None:
    """Read the driver's file on a node and write its text back; return the problem, None if there is none."""
    try:
        text = find(folder, name)
        if text is None:
            return "does not see it"
        leave(folder, reply, text)
    except AdaGRPOError as error:
        return f"cannot use it: {error}"
    return None
