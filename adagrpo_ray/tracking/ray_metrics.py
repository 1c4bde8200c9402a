"""The metrics of a run as Ray metrics, which the agent of each node serves to Prometheus."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from adagrpo_ray.errors import first_line
from adagrpo_ray.runs.metric import Metric, Value, values_of
from adagrpo_ray.runs.names import LABEL, name_of
from adagrpo_ray.runs.observer import Observer
from adagrpo_ray.runs.record import Record
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord

REFRESH_S = 1.0
"""Ray forgets a gauge that is not set for two of its report intervals, and a step may take longer than that."""

MOST_LABELS = 50
"""Values of a label that come from the data: each is a time series of its own in Prometheus. A run keeps its first."""

END_S = 5.0
"""Seconds for what is left at the end; it takes milliseconds."""


class RayMetrics(Observer):
    """Sets the gauges and counters of the run `name` in this process, which Ray has to know by then.

    Gauges show the newest step and evaluation. Counters add up over the steps, and count a step that was done twice
    twice. A thread of its own sets them, in microseconds and without a message: Ray collects them every ten seconds by
    itself. An error of Ray costs the metrics and no step: it is reported once, in the run's own thread. A gauge without
    a value in a new step is set to NaN once, by which Prometheus too marks a series that ends. Without that Ray would
    show the old value for twenty seconds more.
    """

    def __init__(self, name: str, tell: Callable[[str], None] = lambda text: None) -> None:
        self._run, self._tell = name_of(name, LABEL), tell
        self._metrics: dict[str, Any] = {}
        self._labels: dict[str, set[str]] = {}  # of each metric, those that have a time series
        self._gauges: dict[type[Record], list[Value]] = {}  # of the newest record of each kind
        self._jobs: SimpleQueue[StepRecord | EvaluationRecord | None] = SimpleQueue()
        self._notices: SimpleQueue[str] = SimpleQueue()
        self._thread = Thread(target=self._work, name="ray-metrics", daemon=True)
        self._thread.start()

    def step(self, record: StepRecord) -> None:
        """Show the step."""
        self._put(record)

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Show the evaluation."""
        self._put(record)

    def close(self) -> None:
        """Show nothing any more: Ray forgets the gauges soon, and keeps the counters."""
        self._jobs.put(None)
        self._thread.join(END_S)
        self._say()

    def _put(self, record: StepRecord | EvaluationRecord) -> None:
        if self._thread.is_alive():
            self._jobs.put(record)
        self._say()

    def _say(self) -> None:
        while not self._notices.empty():
            self._tell(self._notices.get())

    def _work(self) -> None:
        while True:
            try:
                record = self._jobs.get(timeout=REFRESH_S)
            except Empty:
                with suppress(Exception):  # Ray may be ending
                    if ray.is_initialized():
                        self._set()
                continue
            if record is None:
                return
            try:
                self._show(record)
            except BaseException as error:  # whatever Ray raises: this thread has nothing else to end
                reason = f"the run continues without them: {first_line(error)}"
                self._notices.put(f"warning: metrics for Prometheus are let go, {reason}")
                return

    def _show(self, record: Record) -> None:
        values = [value for value in values_of(record) if value.value is not None and self._has_series(value)]
        before = self._gauges.get(type(record), [])
        self._gauges[type(record)] = [value for value in values if not value.metric.counter]
        self._set()
        tags = {value.tag for value in values}
        for value in before:
            if value.tag not in tags:
                self._metric(value.metric).set(math.nan, self._labels_of(value))
        for value in values:
            if value.metric.counter and value.value:
                self._metric(value.metric).inc(float(value.value), self._labels_of(value))

    def _set(self) -> None:
        for values in self._gauges.values():
            for value in values:
                self._metric(value.metric).set(value.value, self._labels_of(value))

    def _has_series(self, value: Value) -> bool:
        """Whether the value is one of the first MOST_LABELS of its metric that this run has shown."""
        known = self._labels.setdefault(value.metric.name, set())
        if len(known) < MOST_LABELS:
            known.add(value.of)
        return value.of in known

    def _metric(self, metric: Metric) -> Any:
        """Ray's metric, made at its first use, since Ray has to be there."""
        if metric.name not in self._metrics:
            kind = Counter if metric.counter else Gauge
            labels = ("run",) if metric.label is None else ("run", metric.label)
            self._metrics[metric.name] = kind(metric.ray_name, metric.description, labels)
        return self._metrics[metric.name]

    def _labels_of(self, value: Value) -> dict[str, str]:
        label = value.metric.label
        return {"run": self._run} if label is None else {"run": self._run, label: name_of(value.of, LABEL)}
