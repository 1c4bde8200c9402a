"""The load of rollout actors as Ray metrics; those of a run are in `tracking/ray_metrics.py`."""

from __future__ import annotations

from contextlib import suppress

from ray.util.metrics import Gauge

from adagrpo_ray.runs.metric import values_of
from adagrpo_ray.runs.records import RolloutLoad


class RolloutGauges:
    """The gauges of one run's rollout actors in this process, which must be connected to Ray.

    Ray drops a gauge that has not been set for twenty seconds, and thus those of an actor that is gone.
    """

    def __init__(self, run: str | None) -> None:
        self._run = run or ""
        self._made: dict[str, Gauge] = {}

    def show(self, actor: str, load: RolloutLoad) -> None:
        """Set the gauges of the actor with that name. Ignores errors of Ray: rollouts do not need metrics."""
        with suppress(Exception):
            for value in values_of(load, actor):
                if value.value is None:
                    continue
                name = value.metric.ray_name
                if name not in self._made:
                    self._made[name] = Gauge(name, value.metric.description, value.metric.ray_labels)
                self._made[name].set(float(value.value), value.ray_labels(self._run))
