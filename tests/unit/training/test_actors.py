"""Errors of calls to the learner actors."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

from adagrpo_ray.errors import LearnerLostError
from adagrpo_ray.training.actors import get

DEATHS = (RayActorError(), OutOfMemoryError("low on memory"), NodeDiedError("the node died"), WorkerCrashedError())


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: type(death).__name__)
def test_a_learner_that_died_is_lost_whatever_killed_it(monkeypatch: pytest.MonkeyPatch, death: RayError) -> None:
    def fail(references: Any, timeout: float | None = None) -> Any:
        raise death

    monkeypatch.setattr(ray, "get", fail)
    with pytest.raises(LearnerLostError, match="a learner rank died: "):
        get([])
