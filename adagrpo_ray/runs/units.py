"""The units of metrics, and the axes that they are drawn on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """The unit of a metric.

    grafana: Grafana's name of it.
    rate: Grafana's name of this unit per second.
    low, high: the ends of an axis, unless a value lies beyond them; None fits the end to the values.
    """

    name: str
    grafana: str = "short"
    rate: str = "short"
    low: float | None = 0.0
    high: float | None = None


ACTORS = Unit("actors")
BRIER = Unit("Brier score")
BYTES = Unit("bytes", "bytes", "Bps")
CALLS = Unit("calls")
COMPLETIONS = Unit("completions")
COST = Unit("cost")
GROUPS = Unit("groups")
LOSS = Unit("loss", low=None)
NATS = Unit("nats", low=None)
NORM = Unit("norm")
PASSES = Unit("passes")
PROMPTS = Unit("prompts")
RATE = Unit("rate")
RATIO = Unit("ratio")
REQUESTS = Unit("requests")
REWARD = Unit("reward", low=None)
SECONDS = Unit("seconds", "s", "percentunit")
SEQUENCES = Unit("sequences")
SHARE = Unit("share", "percentunit", high=1.0)
STEPS = Unit("steps")
TOKENS = Unit("tokens")
TOKENS_PER_SECOND = Unit("tokens/s")
TURNS = Unit("turns")
UPDATES = Unit("updates")
VERSIONS = Unit("versions", high=1.0)
