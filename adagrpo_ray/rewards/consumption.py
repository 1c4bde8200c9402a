"""The requests, tokens and costs of judges and reward models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from threading import Lock

_PURPOSE: ContextVar[str] = ContextVar("purpose", default="")


@dataclass(frozen=True)
class Consumption:
    """The consumption of one judge or reward model for one purpose, since the last report.

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

    @property
    def counts(self) -> dict[str, float]:
        """The fields by their names, without a cost if no price is set."""
        return {name: number for name, number in asdict(self).items() if number is not None}


@contextmanager
def counted_for(purpose: str) -> Iterator[None]:
    """Count the consumption of this task, and of tasks that it starts within the block, for this purpose."""
    before = _PURPOSE.set(purpose)
    try:
        yield
    finally:
        _PURPOSE.reset(before)


class Meter:
    """Adds up consumption by purpose, for reports from another thread than the one that counts.

    The purpose is that of `counted_for`, without it "": the training steps.
    """

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}  # by purpose
        self._lock = Lock()

    def add(self, **counts: int) -> None:
        """Add to the counts, which have the names of the fields of Consumption."""
        with self._lock:
            own = self._counts.setdefault(_PURPOSE.get(), {})
            for name, number in counts.items():
                own[name] = own.get(name, 0) + number

    def read(self, purpose: str = "") -> Consumption:
        """Return the counts for a purpose since the last call, without a cost."""
        with self._lock:
            return Consumption(**self._counts.pop(purpose, {}))
