"""Records the values of Ray's gauges and counters, without Ray."""

from __future__ import annotations

import pytest

from adagrpo_ray.rollout import gauges
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.tracking import ray_metrics
from adagrpo_ray.tracking.ray_metrics import RayMetrics


def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[float, dict[str, str]]]]:
    """Replace Ray's metrics; the result gets the values set from now on, by metric. They refuse non-ASCII tags too."""
    made: dict[str, list[tuple[float, dict[str, str]]]] = {}

    class Watched:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self._seen = made.setdefault(name, [])

        def set(self, value: float, tags: dict[str, str]) -> None:
            for tag in tags.values():
                tag.encode("ascii")
            self._seen.append((value, tags))

        inc = set

    for module in (ray_metrics, gauges):
        monkeypatch.setattr(module, "Gauge", Watched)
    monkeypatch.setattr(ray_metrics, "Counter", Watched)
    return made


def given(monkeypatch: pytest.MonkeyPatch, *records: StepRecord | EvaluationRecord) -> dict[tuple[str, ...], float]:
    """The last values that gauges and counters get from these records, by metric and the value of its label."""
    made = watched(monkeypatch)
    metrics = RayMetrics("run")
    for record in records:
        metrics.step(record) if isinstance(record, StepRecord) else metrics.evaluation("", record)
    metrics.close()
    return {
        (name, *(of for label, of in tags.items() if label != "run")): value
        for name, values in made.items()
        for value, tags in values
    }
