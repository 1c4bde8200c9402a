"""The load of rollout actors as Ray metrics; those of a run are in `tracking/ray_metrics.py`."""

from __future__ import annotations

from contextlib import suppress

from ray.util.metrics import Gauge

from adagrpo_ray.runs.metric import metrics_of
from adagrpo_ray.runs.names import LABEL, name_of
from adagrpo_ray.runs.records import RolloutLoad


class RolloutGauges:
    """The gauges of one run's rollout actors in this process, which must be connected to Ray.

    Ray drops a gauge that has not been set for twenty seconds, and thus those of an actor that is gone.
    """

    def __init__(self, run: str | None) -> None:
        self._run = name_of(run or "", LABEL)
        self._made: dict[str, Gauge] = {}

    def show(self, actor: str, load: RolloutLoad) -> None:
        """Set the gauges of the actor with that name. Ignores errors of Ray: rollouts do not need metrics."""
        with suppress(Exception):
            for metric in metrics_of(RolloutLoad):
                value = getattr(load, metric.field)
                if value is None:
                    continue
                if metric.name not in self._made:
                    self._made[metric.name] = Gauge(metric.ray_name, metric.description, ("run", "actor"))
                self._made[metric.name].set(float(value), {"run": self._run, "actor": name_of(actor, LABEL)})
