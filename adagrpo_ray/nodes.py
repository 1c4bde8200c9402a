"""Whether the nodes of a cluster share what a run needs them to share."""

from __future__ import annotations

from contextlib import suppress
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adagrpo_ray.errors import AdaGRPOError, ResourceError
from adagrpo_ray.storage import clear, find, leave

TIMEOUT_S = 120.0


def check_shared(folder: str) -> None:
    """Have every node of the joined cluster read in `folder`, a path or URL, and write there.

    Raises ResourceError that names the nodes which do not see what this process wrote, or whose answer it does not see.
    """
    name, nodes = f".probe-{uuid4().hex}", {n["NodeID"]: n["NodeName"] for n in ray.nodes() if n["Alive"]}
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
                problem = str(error).strip().splitlines()[0]
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
            f"run.folder={folder!r} is not one place for the whole cluster ({'; '.join(problems)}); give a folder that "
            "all nodes share, or a URL such as s3://bucket/path"
        )


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
