"""Replies of a learner rank to the trainer: references to batches, reports and metrics, never samples or weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.sampling_metrics import SamplingMetrics


@dataclass(frozen=True)
class Pending:
    """The call is not done yet: call again. `notices` are events of rollouts and scoring since the last reply."""

    notices: tuple[str, ...]


@dataclass(frozen=True)
class Collected:
    """The result of sampling one step.

    - `batches`: one object reference of a TrainBatch for each rank.
    - `trained_tokens`: completion tokens in all batches.
    - `passes`: passes that the learner makes over them.
    - `metrics`: the sampling metrics.
    - `groups`: some groups, for samples.jsonl.
    - `rollout_actors`: number of rollout actors that work.
    - `rollout_restarts`: number of rollout actors that were replaced in this run.
    - `notices`: as in `Pending`.
    """

    batches: tuple[Any, ...]
    trained_tokens: int
    passes: int
    metrics: SamplingMetrics
    groups: tuple[GroupSample, ...]
    rollout_actors: int
    rollout_restarts: int
    notices: tuple[str, ...]


@dataclass(frozen=True)
class SyncReport:
    """A version of the adapter that was sent to all rollout actors, which verify it by its digest.

    - `version`, `sent_bytes`: of the version that was sent.
    - `seconds`: time in which all rollout actors got the newest version that is known to have arrived. It is the
      version that was sent if the sync has waited for it, else the one before.
    """

    version: int
    sent_bytes: int
    seconds: float
