"""Whether the nodes of a cluster share what a run needs them to share."""

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
"""Ray takes half a minute to notice that a node is gone without a word."""


def check_shared(folder: str) -> None:
    """Have every node of the joined cluster read in `folder`, a path or URL, and write there.

    Raises ResourceError that names the nodes which do not see what this process wrote, or whose answer it does not see.
    A node that is lost meanwhile is none of them.
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
                problem = "writes what is not seen from here"
            if problem is not None:
                problems.append(f"node {nodes[node]} {problem}")
    finally:
        for left in (name, *(f"{name}-{node}" for node in nodes)):
            with suppress(AdaGRPOError):
                clear(folder, left)
    if problems:
        raise ResourceError(
            f"the run folder {folder!r} is not one place for the whole cluster ({'; '.join(problems)}); let "
            "run.output_dir be a folder that all nodes share, or a URL such as s3://bucket/path"
        )


def _alive() -> dict[str, str]:
    """The names of the nodes by their ids."""
    return {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}


def _is_lost(node: str) -> bool:
    """Whether Ray holds the node to be lost, or comes to in the time that it takes for that."""
    deadline = time.monotonic() + LOST_WITHIN_S
    while node in _alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _answer(folder: str, name: str, reply: str) -> str | None:
    """On a node: read what the driver wrote and write it back; what is wrong, if anything is."""
    try:
        text = find(folder, name)
        if text is None:
            return "does not see it"
        leave(folder, reply, text)
    except AdaGRPOError as error:
        return f"cannot use it: {error}"
    return None
