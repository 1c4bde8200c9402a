"""The record of one step, made from the reports of its phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from adagrpo_ray.config.tree import Config
from adagrpo_ray.learner.replies import Collected, SyncReport
from adagrpo_ray.learner.schedule import learning_rate
from adagrpo_ray.learner.updates import TrainReport, update_metrics
from adagrpo_ray.runs import StepRecord
from adagrpo_ray.runs.measured import ratio


def step_record(
    config: Config,
    step: int,
    collected: Collected,
    reports: Sequence[TrainReport],
    sync: SyncReport,
    seconds: Mapping[str, float],
) -> StepRecord:
    """The record of `step`.

    `reports` has one report for each rank, and is empty if there was nothing to train on. `seconds` has the time of
    each phase, in which the trainer waited for it.
    """
    made, step_time = any(report.first for report in reports), sum(seconds.values())
    return StepRecord(
        step=step,
        step_time=step_time,
        **asdict(collected.metrics),
        trained_tokens=collected.trained_tokens if made else 0,
        passes=collected.passes if made else 0,
        **update_metrics(reports, collected.passes),
        learning_rate=reports[0].learning_rate
        if reports
        else learning_rate(config, step, config.algorithm.updates_per_batch - 1),
        weight_version=sync.version,
        sync_bytes=sync.sent_bytes,
        sync_time=sync.seconds,
        rollout_actors=collected.rollout_actors,
        rollout_restarts=collected.rollout_restarts,
        tokens_per_second=ratio(collected.metrics.generated_tokens, step_time),
        time=seconds,
    )
