"""Warns of updates that were skipped because numbers in them were not finite, and ends a run with too many of them."""

from __future__ import annotations

from collections.abc import Callable

from adagrpo_ray.config.learner import LearnerSettings
from adagrpo_ray.errors import DivergedError
from adagrpo_ray.learner.updates import TrainReport


def warn_of_skipped(step: int, report: TrainReport | None, notify: Callable[[str], None]) -> None:
    """Warn if an update of the step was skipped; `report` is None if there was nothing to train on."""
    if report is not None and report.cause is not None:
        notify(
            f"warning: step {step}: an update was skipped, because numbers were not finite: {report.cause} "
            f"({report.skipped_in_a_row} in a row)"
        )


def check_skipped(step: int, report: TrainReport | None, settings: LearnerSettings) -> None:
    """Raise DivergedError if the step skipped an update, and `max_skipped_updates` in a row have been skipped."""
    if report is None or report.cause is None or settings.max_skipped_updates is None:
        return
    if report.skipped_in_a_row >= settings.max_skipped_updates:
        raise DivergedError(
            f"step {step}: {report.skipped_in_a_row} updates in a row were skipped, because numbers in them were not "
            f"finite (learner.max_skipped_updates={settings.max_skipped_updates}); lower learner.learning_rate="
            f"{settings.learning_rate}, or read the policy's completions in samples.jsonl"
        )
