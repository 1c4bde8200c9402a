"""Errors of calls to the learner actors."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from adagrpo_ray.errors import AdaGRPOError, LearnerLostError
from adagrpo_ray.training.actors import get

DEATHS = (RayActorError(), OutOfMemoryError("low on memory"), NodeDiedError("the node died"), WorkerCrashedError())


def fails(monkeypatch: pytest.MonkeyPatch, error: RayError) -> None:
    """Let ray.get raise the error."""

    def fail(references: Any, timeout: float | None = None) -> Any:
        raise error

    monkeypatch.setattr(ray, "get", fail)


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: type(death).__name__)
def test_a_learner_that_died_is_lost_whatever_killed_it(monkeypatch: pytest.MonkeyPatch, death: RayError) -> None:
    fails(monkeypatch, death)
    with pytest.raises(LearnerLostError, match="a learner rank died: "):
        get([])


def test_another_error_of_ray_is_an_error_of_this_library(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, ObjectLostError("f" * 56, None, ""))
    with pytest.raises(AdaGRPOError, match="an actor failed unexpectedly: ObjectLostError: ") as caught:
        get([])
    assert not isinstance(caught.value, LearnerLostError)
