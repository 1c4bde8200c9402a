"""Renders the page of all metrics in Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from adagrpo_ray.runs.markdown import cell
from adagrpo_ray.runs.metric import Metric, metrics_of
from adagrpo_ray.runs.record import Record
from adagrpo_ray.runs.records import EvaluationRecord, RolloutLoad, StepRecord

HEAD = """# Metrics

TensorBoard, W&B and MLflow show metrics under their *name*. A metric that TRL 1.16 has too has the same name and the
same computation. Evaluations are under `eval/`, the phases of a step under `time/`, and most others under `adaptive/`.
A part in braces stands for a reward function, a difficulty, a benchmark, a rung of the ladder or a phase.

The *field* is the name in `metrics.jsonl` and in `StepRecord`. In Prometheus the part in braces is a label, and a name
that ends in `_total` adds up over the run. The column *combined* shows how the values of micro-batches and ranks are
combined; `last` means that there is one value, or the same on all ranks. A metric that was not measured in a step is
null in `metrics.jsonl`, and has no point elsewhere.
"""
SECTIONS: tuple[tuple[str, type[Record]], ...] = (
    ("Of a step", StepRecord),
    ("Of an evaluation on the held-out prompts and benchmarks, in `evaluations.jsonl`", EvaluationRecord),
    ("Of a rollout actor, in Prometheus alone", RolloutLoad),
)


def as_markdown() -> str:
    """The page, with a table for each kind of record."""
    return "\n".join([HEAD, *(f"## {title}\n\n{table(metrics_of(record))}" for title, record in SECTIONS)])


def table(metrics: Iterable[Metric]) -> str:
    """The metrics as a table, one on each line."""
    lines = ["| name | field | Prometheus | unit | combined | description |", "| --- | --- | --- | --- | --- | --- |"]
    for metric in metrics:
        cells = (f"`{metric.name}`", f"`{metric.field}`", f"`{metric.prometheus}`", metric.unit.name, metric.combine)
        lines.append(f"| {' | '.join(cells)} | {cell(metric.description)} |")
    return "\n".join(lines) + "\n"
