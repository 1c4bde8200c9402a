"""The requests, tokens and costs of judges and reward models."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True)
class Consumption:
    """The consumption of one judge or reward model since the last report.

    - `requests`: all requests that were sent, retries included.
    - `prompt_tokens`, `completion_tokens`: as the server counts them.
    - `cache_hits`: completions that needed no request.
    - `failures`: completions whose request got no score, after its retries; those that it cancels do not count.
    - `cost`: the price of the tokens; None if no price is set.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cache_hits: int = 0
    failures: int = 0
    cost: float | None = None


class Meter:
    """Adds up consumption, for reports from another thread than the one that counts."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lock = Lock()

    def add(self, **counts: int) -> None:
        """Add to the counts, which have the names of the fields of Consumption."""
        with self._lock:
            for name, number in counts.items():
                self._counts[name] = self._counts.get(name, 0) + number

    def read(self) -> Consumption:
        """Return the counts since the last call, without a cost."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return Consumption(**counts)
