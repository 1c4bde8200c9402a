"""Replies of a learner rank to the trainer: references to batches, reports and metrics, never samples or weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adagrpo_ray.runs.records import SamplingMetrics
from adagrpo_ray.runs.samples import GroupSample


@dataclass(frozen=True)
class Pending:
    """It is not done yet: ask again. `notices` are events of rollouts and scoring since the last reply."""

    notices: tuple[str, ...]


@dataclass(frozen=True)
class Collected:
    """A step's batches, one object reference a rank, with the metrics of their sampling and some groups to show.

    `rollout_actors` are at work, `rollout_restarts` were replaced in this run; `notices` as in `Pending`.
    """

    batches: tuple[Any, ...]
    trained_tokens: int
    metrics: SamplingMetrics
    groups: tuple[GroupSample, ...]
    rollout_actors: int
    rollout_restarts: int
    notices: tuple[str, ...]


@dataclass(frozen=True)
class SyncReport:
    """One version that all rollout actors have proved to hold, and its size."""

    version: int
    sent_bytes: int
