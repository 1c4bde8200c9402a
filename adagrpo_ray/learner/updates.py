"""Reports of the updates of a step, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from adagrpo_ray.algorithm.update_statistics import UpdateStatistics

OF_LAST = (
    *("clip_ratio_low_mean", "clip_ratio_high_mean", "clip_ratio_region_mean"),
    *("policy_ratio_min", "policy_ratio_mean", "policy_ratio_max"),
)
"""Metrics of the ratio policy / old, taken from the last pass: in the first one both are the same policy."""
OF_BOTH = ("loss", "kl", "entropy", "grad_norm")
"""Metrics of which a step with several passes also records those of the last one, as `last_update_loss` and so on."""


@dataclass(frozen=True)
class UpdateReport:
    """The report of one rank about an update; the `statistics` of all ranks merge to those of the (mini-)batch."""

    statistics: UpdateStatistics
    grad_norm: float


def of_pass(updates: Sequence[UpdateReport]) -> UpdateReport | None:
    """The report of all `updates` of a pass over the batch, with the means of loss and norm; None without any.

    The difference of log-probabilities between learner and rollouts is that of the first mini-batch, whose old policy
    is the one that sampled: those of later ones have made updates since.
    """
    if not updates:
        return None
    merged = reduce(UpdateStatistics.merged, (update.statistics for update in updates))
    norm = sum(update.grad_norm for update in updates) / len(updates)
    agreement = updates[0].statistics.logp_difference
    return UpdateReport(replace(merged, loss=merged.loss / len(updates), logp_difference=agreement), norm)


@dataclass(frozen=True)
class TrainReport:
    """The report of one rank about the updates on a batch; all but `statistics` is the same on every rank.

    - `first`, `last`: the updates of the first and of the last pass over the batch together; None if none was made.
    - `learning_rate`: that of the last update that was tried.
    - `skipped`: number of skipped updates.
    - `cause`: the tensor with a number that is not finite, in the first skipped update.
    - `skipped_in_a_row`: number of skipped updates, over batches, since the last batch of which none was skipped.
    """

    first: UpdateReport | None
    last: UpdateReport | None
    learning_rate: float
    skipped: int
    cause: str | None
    skipped_in_a_row: int


def update_metrics(reports: Sequence[TrainReport], passes: int) -> dict[str, Any]:
    """The fields of StepRecord that come from `reports`, one for each rank; empty if nothing was trained on.

    `passes` is the number of passes over a batch. Metrics are those of the first one, whose data are fresh, except
    OF_LAST.
    """
    first, last = _whole([r.first for r in reports]), _whole([r.last for r in reports])
    return {
        **first,
        **{name: last[name] for name in OF_LAST},
        **{f"last_update_{name}": last[name] if passes > 1 else None for name in OF_BOTH},
        "skipped_updates": reports[0].skipped if reports else 0,
    }


def _whole(reports: Sequence[UpdateReport | None]) -> dict[str, Any]:
    """Metrics of one pass over all ranks; each is None if no update was made."""
    made = [report for report in reports if report is not None]
    statistics = reduce(UpdateStatistics.merged, (report.statistics for report in made), UpdateStatistics())
    metrics = statistics.metrics()
    return {**metrics, "loss": metrics["loss"] if made else None, "grad_norm": made[0].grad_norm if made else None}
