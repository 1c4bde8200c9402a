"""How the trainer hands over what it measures, and the fan-out to several observers."""

from __future__ import annotations

from typing import Protocol

from adagrpo_ray.observe.records import EvaluationRecord, StepRecord, Summary


class Observer(Protocol):
    """Whoever wants to know how a run goes."""

    def phase(self, text: str) -> None:
        """A part of the run begins that may take a while: 'starting 2 rollout actors ...'."""

    def step(self, record: StepRecord) -> None:
        """A training step is done."""

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """The held-out accuracy was measured; `label` says when, such as 'before' or 'after'."""

    def summary(self, summary: Summary) -> None:
        """The run is over."""


class Observers(Observer):
    """Several observers as one, told in the order given. Put first the one that keeps things."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def phase(self, text: str) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.phase(text)

    def step(self, record: StepRecord) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.step(record)

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.evaluation(label, record)

    def summary(self, summary: Summary) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.summary(summary)
