"""How much rollout actors have to do, as Ray metrics; `tracking/ray_metrics.py` has those of a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from ray.util.metrics import Gauge

from adagrpo_ray.runs.names import LABEL, name_of

GAUGES = {
    "outstanding_tokens": "tokens that the rollout actor may still have to generate",
    "outstanding_requests": "requests, one a group, that the rollout actor has not answered",
    "sequences_running": "sequences that the rollout actor's engine decodes",
    "sequences_waiting": "sequences that wait for room in the rollout actor's engine",
    "kv_cache_usage": "share of the engine's KV cache in use",
}
"""Name and description; exported as ray_adagrpo_rollout_NAME, with the labels `run` and `actor`."""


class RolloutGauges:
    """The gauges of one run's rollout actors in this process, which Ray has to know already.

    Ray forgets a gauge that is not set for twenty seconds, and with it an actor that is gone.
    """

    def __init__(self, run: str | None) -> None:
        self._run = name_of(run or "", LABEL)
        self._made: dict[str, Gauge] = {}

    def show(self, actor: str, values: Mapping[str, float]) -> None:
        """Set the gauges of the actor of that name. What Ray raises is of no matter: rollouts do without."""
        with suppress(Exception):
            for name, value in values.items():
                if name not in self._made:
                    self._made[name] = Gauge(f"adagrpo_rollout_{name}", GAUGES[name], ("run", "actor"))
                self._made[name].set(float(value), {"run": self._run, "actor": name_of(actor, LABEL)})
