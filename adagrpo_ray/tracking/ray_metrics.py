"""Sets the metrics of a run as Ray metrics, which the agent of each node serves to Prometheus."""

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
from adagrpo_ray.runs.observer import Observer
from adagrpo_ray.runs.record import Record
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord

REFRESH_S = 1.0
"""Interval at which gauges are set again, in seconds.

Ray drops a gauge that is not set for two of its report intervals, and a step may take longer than that.
"""

MOST_LABELS = 50
"""Values of a label that a run shows; the first ones are kept.

Values come from the data, and each is a time series of its own in Prometheus.
"""

END_S = 5.0
"""Seconds for the remaining records at the end of a run; they take milliseconds."""


class RayMetrics(Observer):
    """Sets the gauges and counters of the run `name` in this process, in which Ray must be initialized.

    Gauges show the newest step and evaluation. Counters add up over the steps; a step that is repeated counts twice.
    A thread sets them, which takes microseconds and sends no message: Ray collects them every ten seconds. If Ray
    raises an error, the metrics are disabled and the run continues; `notify` receives one warning, in the run's thread.
    A gauge without a value in a new step is set to NaN once, the marker of Prometheus for a series that ends. Without
    it Ray would show the old value for twenty seconds more.
    """

    def __init__(self, name: str, notify: Callable[[str], None] = lambda text: None) -> None:
        self._run, self._notify = name, notify
        self._metrics: dict[str, Any] = {}
        self._labels: dict[str, set[str]] = {}  # metric name -> values of its label that have a time series
        self._gauges: dict[type[Record], list[Value]] = {}  # kind of record -> gauges of the newest record
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
        """Stop the thread. Ray soon drops the gauges, and keeps the counters."""
        self._jobs.put(None)
        self._thread.join(END_S)
        self._forward_notices()

    def _put(self, record: StepRecord | EvaluationRecord) -> None:
        if self._thread.is_alive():
            self._jobs.put(record)
        self._forward_notices()

    def _forward_notices(self) -> None:
        while not self._notices.empty():
            self._notify(self._notices.get())

    def _work(self) -> None:
        while True:
            try:
                record = self._jobs.get(timeout=REFRESH_S)
            except Empty:
                with suppress(Exception):  # Ray may be shutting down
                    if ray.is_initialized():
                        self._set()
                continue
            if record is None:
                return
            try:
                self._show(record)
            except BaseException as error:  # even SystemExit ends only this thread
                reason = f"the run continues without them: {first_line(error)}"
                self._notices.put(f"warning: metrics for Prometheus are disabled, {reason}")
                return

    def _show(self, record: Record) -> None:
        values = [value for value in values_of(record) if value.value is not None and self._has_series(value)]
        before = self._gauges.get(type(record), [])
        self._gauges[type(record)] = [value for value in values if not value.metric.counter]
        self._set()
        tags = {value.tag for value in values}
        for value in before:
            if value.tag not in tags:
                self._metric(value.metric).set(math.nan, value.ray_labels(self._run))
        for value in values:
            if value.metric.counter and value.value:
                self._metric(value.metric).inc(float(value.value), value.ray_labels(self._run))

    def _set(self) -> None:
        for values in self._gauges.values():
            for value in values:
                self._metric(value.metric).set(value.value, value.ray_labels(self._run))

    def _has_series(self, value: Value) -> bool:
        """Whether the label of the value is one of the first MOST_LABELS of its metric in this run."""
        known = self._labels.setdefault(value.metric.name, set())
        if len(known) < MOST_LABELS:
            known.add(value.of)
        return value.of in known

    def _metric(self, metric: Metric) -> Any:
        """The Ray metric, created at its first use, when Ray is initialized."""
        if metric.name not in self._metrics:
            kind = Counter if metric.counter else Gauge
            self._metrics[metric.name] = kind(metric.ray_name, metric.description, metric.ray_labels)
        return self._metrics[metric.name]
