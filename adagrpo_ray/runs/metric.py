"""Declarations of metrics, and the values of a record's metrics.

A metric is declared once, in the annotation of its field in `runs/records.py` or `runs/sampling_metrics.py`.
TensorBoard, W&B, MLflow, Prometheus, Grafana's dashboard, the plots and the page of all metrics (docs/hooks.py) read
the declaration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_type_hints

from adagrpo_ray.runs.names import LABEL, name_of
from adagrpo_ray.runs.panels import Panel
from adagrpo_ray.runs.record import Record
from adagrpo_ray.runs.units import SECONDS, Unit

Combine = Literal[
    "sum",
    "mean over tokens",
    "mean over completions",
    "mean over groups",
    "mean over prompts",
    "std over completions",
    "min",
    "max",
    "last",
]
"""How the values of ranks and micro-batches are combined. `last`: there is one value, or all ranks have the same."""

IMPLIED = ("adaptive", "sampling")
"""Prefixes that the names of fields, and the names in Prometheus, leave out."""


@dataclass(frozen=True)
class Metric:
    """The declaration of a metric.

    name: the name in TensorBoard, W&B and MLflow. A part in braces is a label: the metric then has one value for each
        function, difficulty, benchmark, rung, phase or actor.
    unit: the unit of its values.
    combine: how the values of ranks and micro-batches are combined.
    description: one line for the page of metrics and for Prometheus.
    panel: the panel that draws it; None if none does.
    counter: whether its values add up over the steps of a run.
    field: the name of its field in the record; filled in by `metrics_of`.
    """

    name: str
    unit: Unit
    combine: Combine
    description: str
    panel: Panel | None = None
    counter: bool = False
    field: str = ""

    @property
    def label(self) -> str | None:
        """Its label, such as "function" or "difficulty"; None if the metric has one value."""
        found = _LABEL.search(self.name)
        return found[1] if found else None

    def tag(self, of: str = "") -> str:
        """The name of the value labelled `of`: of "a/b", "rewards/{function}/mean" is "rewards/a%2Fb/mean"."""
        return _LABEL.sub(lambda _: name_of(of), self.name)

    @property
    def identifier(self) -> str:
        """The name with underscores, without its label: "resamples" for "adaptive/resamples/rung_{rung}".

        The label of a benchmark stays as a word, since "eval/accuracy" is another metric than
        "eval/{benchmark}/accuracy".
        """
        parts = [part for part in self.name.replace("{benchmark}", "benchmark").split("/") if not _LABEL.search(part)]
        return "_".join(parts[1:] if parts[0] in IMPLIED else parts)

    @property
    def ray_name(self) -> str:
        """The name of the Ray metric. A time has the suffix "_seconds", which is the convention of Prometheus."""
        return f"adagrpo_{self.identifier}{'_seconds' if self.unit is SECONDS else ''}"

    @property
    def prometheus(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.ray_name}{'_total' if self.counter else ''}"

    @property
    def ray_labels(self) -> tuple[str, ...]:
        """The names of the labels of the Ray metric."""
        return ("run",) if self.label is None else ("run", self.label)


@dataclass(frozen=True)
class Value:
    """One value of a metric in a record.

    value: None if it was not measured.
    of: the value of the label, such as the name of a reward function; "" if the metric has no label.
    """

    metric: Metric
    value: float | None
    of: str = ""

    @property
    def tag(self) -> str:
        """The name in TensorBoard, W&B and MLflow."""
        return self.metric.tag(self.of)

    def ray_labels(self, run: str) -> dict[str, str]:
        """The labels of the value as one of a Ray metric, by name, in the run of that name."""
        return {label: name_of(of, LABEL) for label, of in zip(self.metric.ray_labels, (run, self.of), strict=False)}


@dataclass(frozen=True)
class Series:
    """The values of a metric in consecutive records, one for each record."""

    metric: Metric
    values: tuple[float | None, ...]


def metrics_of(record: type[Record], panel: Panel | None = None) -> tuple[Metric, ...]:
    """The metrics that a kind of record declares, in the order of its fields; only those of `panel` if it is given."""
    if record not in _DECLARED:
        _DECLARED[record] = tuple(
            replace(metric, field=field)
            for field, hint in get_type_hints(record, include_extras=True).items()
            for metric in getattr(hint, "__metadata__", ())
            if isinstance(metric, Metric)
        )
    return tuple(metric for metric in _DECLARED[record] if panel is None or metric.panel is panel)


def unit_of(metrics: Iterable[Metric]) -> Unit | None:
    """The unit of all these metrics; None if their units differ."""
    units = {metric.unit for metric in metrics}
    return units.pop() if len(units) == 1 else None


def values_of(record: Record, of: str = "") -> Iterator[Value]:
    """The values of a record's metrics, without those of the nameless difficulty.

    `of` is the label of all values of a record that is about one labelled thing, such as a rollout actor.
    """
    for metric in metrics_of(type(record)):
        value = getattr(record, metric.field)
        if of or metric.label is None:
            yield Value(metric, value, of)
        else:
            yield from (Value(metric, item, name) for name, item in _by_label(value).items())


def scalars(record: Record) -> dict[str, float]:
    """The measured values of a record by tag, without the step, which is the x-axis."""
    values = (value for value in values_of(record) if value.metric.field != "step")
    return {value.tag: float(value.value) for value in values if value.value is not None}


def series(records: Sequence[Record], panel: Panel) -> dict[str, Series]:
    """The values of a panel's metrics in records of one kind, by tag.

    If a label occurs only in some of the records, the others get 0 for a counter and None for any other metric.
    """
    found = {}
    for metric in metrics_of(type(records[0]), panel) if records else ():
        column = [getattr(record, metric.field) for record in records]
        if metric.label is None:
            found[metric.name] = Series(metric, tuple(column))
            continue
        rows = [_by_label(value) for value in column]
        missing = 0 if metric.counter else None
        for of in dict.fromkeys(of for row in rows for of in row):
            found[metric.tag(of)] = Series(metric, tuple(row.get(of, missing) for row in rows))
    return found


def _by_label(value: Mapping[str, float | None] | Sequence[float]) -> Mapping[str, float | None]:
    """The values of a metric by label, without the nameless difficulty; the label of a sequence is the place in it."""
    if isinstance(value, Mapping):
        return {of: item for of, item in value.items() if of}
    return {str(place): item for place, item in enumerate(value)}


_DECLARED: dict[type[Record], tuple[Metric, ...]] = {}
_LABEL = re.compile(r"\{(\w+)\}")
