"""Wraps the user's callbacks, so that their errors name the callback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ExtensionError
from adagrpo_ray.extensions.loading import describe_error
from adagrpo_ray.runs.observer import Observer
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary


class Guarded(Observer):
    """Forwards every event to `callback`.

    Raises ExtensionError, which names the callback and ends the run, if the callback raises an Exception: a callback
    may enforce a condition of the run, so that its failure must not pass silently.
    """

    def __init__(self, callback: Observer) -> None:
        self._callback = callback

    def began(self, config: Config, folder: str) -> None:
        """Forward the event."""
        with self._named("began"):
            self._callback.began(config, folder)

    def phase(self, text: str) -> None:
        """Forward the event."""
        with self._named("phase"):
            self._callback.phase(text)

    def step(self, record: StepRecord) -> None:
        """Forward the event."""
        with self._named("step"):
            self._callback.step(record)

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Forward the event."""
        with self._named("samples"):
            self._callback.samples(groups)

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Forward the event."""
        with self._named("evaluation"):
            self._callback.evaluation(label, record)

    def summary(self, summary: Summary) -> None:
        """Forward the event."""
        with self._named("summary"):
            self._callback.summary(summary)

    def ended(self, error: BaseException | None) -> None:
        """Forward the event."""
        with self._named("ended"):
            self._callback.ended(error)

    @contextmanager
    def _named(self, method: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            name = f"{type(self._callback).__name__}.{method}"
            raise ExtensionError(f"callback {name} raised {describe_error(error)}; fix it, or leave it out") from error
