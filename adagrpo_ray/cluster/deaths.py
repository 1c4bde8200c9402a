"""The errors with which Ray reports the death of an actor that was called."""

from __future__ import annotations

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)
"""Of an actor that its memory monitor kills, Ray raises an OutOfMemoryError, which is no RayActorError."""
