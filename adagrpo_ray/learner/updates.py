"""Reports of the updates of a step, and the metrics that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from adagrpo_ray.algorithm.update_statistics import UpdateStatistics

OF_LAST = (
    *("clip_ratio_low_mean", "clip_ratio_high_mean", "clip_ratio_region_mean"),
    *("policy_ratio_min", "policy_ratio_mean", "policy_ratio_max"),
)
"""Metrics of the ratio policy / old: trivial in the first update on a batch, in which both are the same policy."""
OF_BOTH = ("loss", "kl", "entropy", "grad_norm")
"""Metrics that the record of a step with several updates has of the last one too, as `last_update_loss` and so on."""


@dataclass(frozen=True)
class UpdateReport:
    """What one rank reports of one update; the ranks' `statistics` merge to those of the batch."""

    statistics: UpdateStatistics
    grad_norm: float


@dataclass(frozen=True)
class TrainReport:
    """What one rank reports of the updates on a batch.

    `first` and `last` are the first and the last update that were made, None if none was. `skipped` counts the updates
    that were skipped, `cause` says what was not finite in the first of them; `skipped_in_a_row` counts over batches,
    and is 0 after an update that was made. All but `statistics` is the same on every rank.
    """

    first: UpdateReport | None
    last: UpdateReport | None
    learning_rate: float  # of the last update that was tried
    skipped: int
    cause: str | None
    skipped_in_a_row: int


def update_metrics(reports: Sequence[TrainReport], updates: int) -> dict[str, Any]:
    """The fields of StepRecord that `reports`, one a rank, are about; `updates` is how many a batch may have.

    Metrics are of the first update, which is on fresh data, except those of OF_LAST. No reports: nothing was trained.
    """
    first, last = _whole([r.first for r in reports]), _whole([r.last for r in reports])
    return {
        **first,
        **{name: last[name] for name in OF_LAST},
        **{f"last_update_{name}": last[name] if updates > 1 else None for name in OF_BOTH},
        "skipped_updates": reports[0].skipped if reports else 0,
    }


def _whole(reports: Sequence[UpdateReport | None]) -> dict[str, Any]:
    """Metrics of one update, over all ranks; None if it was not made."""
    made = [report for report in reports if report is not None]
    statistics = reduce(UpdateStatistics.merged, (report.statistics for report in made), UpdateStatistics())
    metrics = statistics.metrics()
    return {**metrics, "loss": metrics["loss"] if made else None, "grad_norm": made[0].grad_norm if made else None}
