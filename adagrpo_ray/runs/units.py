"""The units of metrics, and how axes show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """What a metric is counted in.

    `grafana` is Grafana's name of it, `rate` that of so much per second. An axis begins at `low` and ends at `high`
    unless a value lies beyond; None leaves the end to the values.
    """

    name: str
    grafana: str = "short"
    rate: str = "short"
    low: float | None = 0.0
    high: float | None = None


ACTORS = Unit("actors")
BYTES = Unit("bytes", "bytes", "Bps")
COMPLETIONS = Unit("completions")
GROUPS = Unit("groups")
LOSS = Unit("loss", low=None)
NATS = Unit("nats", low=None)
NORM = Unit("norm")
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
UPDATES = Unit("updates")
VERSIONS = Unit("versions", high=1.0)
