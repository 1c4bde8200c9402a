"""What is measured, as frozen dataclasses, and the sum of a run.

A figure that was not measured is None, and null in JSON; no record takes infinity or NaN. A difficulty of "" holds the
prompts that have none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from adagrpo_ray.runs.measured import mean, measured, ratio
from adagrpo_ray.runs.record import Record


@dataclass(frozen=True)
class SamplingMetrics(Record):
    """What the sampler knows of a step.

    Rewards and accuracy count first attempts only: resampling until one completion is right would bias them upwards.
    The step ended without `groups_late`, `groups_failed` could not be scored, and `groups_dropped` were given up for
    whatever reason. `resamples` holds one count a rung, `rescued` how many of them met the
    criterion, `extra_tokens` what they cost. Tokens are without what aborted requests had generated. `flat_before` is
    the share of first attempts without spread of rewards, `flat_after` that of the groups trained on;
    `informative_groups` are the others of these. `staleness` is by how many versions what the step trains on is older
    than the weights that it trains: a mean over the newest attempts. `group_size` is the mean number of completions of
    a first attempt. `reward_std` and `reward_std_by_function` are sample standard deviations over all completions of
    first attempts, as TRL 1.16 computes `reward_std` and `rewards/{function}/std`; `flat_by_function` is the share of
    first attempts whose scores by a function are all equal, among those to which it gave at least two. Of all
    completions sampled, `clipped_ratio` is the share that the token limit cut off, `completion_length` the mean number
    of tokens and `mean_terminated_length` that of the others, which ended by themselves.
    """

    reward_mean: float | None
    reward_by_function: Mapping[str, float | None]
    accuracy: float | None
    accuracy_by_difficulty: Mapping[str, float]
    groups_ready: int
    groups_waiting: int
    groups_late: int
    groups_exhausted: int
    groups_failed: int
    groups_dropped: int
    resamples: tuple[int, ...]
    resamples_by_difficulty: Mapping[str, int]
    rescued: tuple[int, ...]
    flat_before: float | None
    flat_after: float | None
    flat_before_by_difficulty: Mapping[str, float]
    flat_after_by_difficulty: Mapping[str, float]
    informative_groups: int
    generated_tokens: int
    extra_tokens: int
    staleness: float | None
    completion_length: float | None
    group_size: float | None = field(default=None, kw_only=True)
    reward_std: float | None = field(default=None, kw_only=True)
    reward_std_by_function: Mapping[str, float | None] = field(default_factory=dict, kw_only=True)
    flat_by_function: Mapping[str, float | None] = field(default_factory=dict, kw_only=True)
    clipped_ratio: float | None = field(default=None, kw_only=True)
    mean_terminated_length: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class StepRecord(SamplingMetrics):
    """One training step.

    `behaviour_gap` is the mean absolute difference between the learner's log-probabilities and those that
    the tokens were drawn with; `correction_mean` the mean importance weight that makes up for it, and
    `capped_share` the share of tokens whose weight was moved to a bound, `masked_share` of those whose weight is 0
    because it was outside of them. `clip_low` and `clip_high` are the shares of tokens whose `ratio` to the policy
    before the update left the clip range below or above, and so stopped counting. `entropy` is the policy's mean over
    the tokens trained on, in nats. If a step makes several updates, its figures are of the first one, on fresh data,
    except `clip_...` and `ratio_...`, which are of the last one, as are `last_...` (None if there is one update a
    step); `learning_rate` is that of its last update. `rollout_actors` were at work when it was sampled,
    `rollout_restarts` had been replaced until then since the program started. `skipped_updates` of the batch were
    skipped on all ranks, since a loss, log-probability or gradient was not finite.
    """

    step: int
    seconds: float
    trained_tokens: int
    loss: float | None
    kl: float | None
    grad_norm: float | None
    learning_rate: float | None
    clip_share: float | None
    behaviour_gap: float | None
    correction_mean: float | None
    capped_share: float | None
    weight_version: int
    sync_bytes: int
    rollout_actors: int
    rollout_restarts: int
    seconds_by_phase: Mapping[str, float]
    clip_low: float | None = field(default=None, kw_only=True)
    clip_high: float | None = field(default=None, kw_only=True)
    ratio_min: float | None = field(default=None, kw_only=True)
    ratio_mean: float | None = field(default=None, kw_only=True)
    ratio_max: float | None = field(default=None, kw_only=True)
    behaviour_gap_max: float | None = field(default=None, kw_only=True)
    correction_min: float | None = field(default=None, kw_only=True)
    correction_max: float | None = field(default=None, kw_only=True)
    masked_share: float | None = field(default=None, kw_only=True)
    entropy: float | None = field(default=None, kw_only=True)
    entropy_by_difficulty: Mapping[str, float | None] = field(default_factory=dict, kw_only=True)
    last_loss: float | None = field(default=None, kw_only=True)
    last_kl: float | None = field(default=None, kw_only=True)
    last_entropy: float | None = field(default=None, kw_only=True)
    last_grad_norm: float | None = field(default=None, kw_only=True)
    skipped_updates: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class EvaluationRecord(Record):
    """Accuracy on the held-out prompts after `step` training steps; `mean_length` is in tokens.

    Of `failed` prompts the completions could not be scored, and count as wrong.
    """

    step: int
    accuracy: float
    accuracy_by_difficulty: Mapping[str, float]
    samples: int
    failed: int
    mean_length: float
    seconds: float


@dataclass(frozen=True)
class Interval(Record):
    """Some steps in a row, `first` to `last`: their resamples over all rungs and their mean reward."""

    first: int
    last: int
    resamples: int
    reward_mean: float | None

    def to_dict(self) -> dict[str, object]:
        """The interval with `from` and `to` as its keys, which Python cannot have as names of fields."""
        return {
            "from": self.first,
            "to": self.last,
            "resamples": self.resamples,
            "reward_mean": self.reward_mean,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The interval whose `to_dict` gave `values`; KeyError where one is missing."""
        return cls(values["from"], values["to"], values["resamples"], values["reward_mean"])


@dataclass(frozen=True)
class Retries(Record):
    """What resampling has cost and brought over some steps; `rescued` is by rung."""

    rescued: tuple[int, ...]
    extra_tokens: int
    tokens_per_informative_group: float | None
    groups_exhausted: int


@dataclass(frozen=True)
class Summary(Record):
    """A whole run. `seconds` is the time of its steps, without start-up and measurements.

    `flat_before_by_difficulty` and `flat_after_by_difficulty` are means over the steps with groups of the difficulty.
    """

    accuracy_before: float | None
    accuracy_after: float | None
    steps: int
    generated_tokens: int
    trained_tokens: int
    resamples: tuple[int, ...]
    seconds: float
    rescued: tuple[int, ...]
    extra_tokens: int
    tokens_per_informative_group: float | None
    groups_exhausted: int
    groups_failed: int
    accuracy_by_difficulty_before: Mapping[str, float]
    accuracy_by_difficulty_after: Mapping[str, float]
    resamples_by_difficulty: Mapping[str, int]
    flat_before_by_difficulty: Mapping[str, float]
    flat_after_by_difficulty: Mapping[str, float]
    resamples_by_interval: tuple[Interval, ...]
    name: str
    folder: Path | str
    adapter: Path | str
    skipped_updates: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The summary whose `to_dict` gave `values`, its folders as text; KeyError where one is missing."""
        intervals = tuple(Interval.from_dict(interval) for interval in values["resamples_by_interval"])
        return replace(super().from_dict(values), resamples_by_interval=intervals)


def summarize(
    records: Sequence[StepRecord],
    before: EvaluationRecord | None,
    after: EvaluationRecord | None,
    *,
    name: str,
    folder: Path | str,
    adapter: Path | str,
) -> Summary:
    """The sum of a run's steps, in at most ten intervals; accuracies that were not measured are None."""
    return Summary(
        accuracy_before=before.accuracy if before else None,
        accuracy_after=after.accuracy if after else None,
        steps=len(records),
        generated_tokens=sum(r.generated_tokens for r in records),
        trained_tokens=sum(r.trained_tokens for r in records),
        resamples=_by_rung(r.resamples for r in records),
        seconds=math.fsum(r.seconds for r in records),
        **asdict(retries(records)),
        groups_failed=sum(r.groups_failed for r in records),
        accuracy_by_difficulty_before=before.accuracy_by_difficulty if before else {},
        accuracy_by_difficulty_after=after.accuracy_by_difficulty if after else {},
        resamples_by_difficulty=dict(sum((Counter(r.resamples_by_difficulty) for r in records), Counter())),
        flat_before_by_difficulty=_by_difficulty(r.flat_before_by_difficulty for r in records),
        flat_after_by_difficulty=_by_difficulty(r.flat_after_by_difficulty for r in records),
        resamples_by_interval=intervals(records, max(1, math.ceil(len(records) / 10))),
        name=name,
        folder=folder,
        adapter=adapter,
        skipped_updates=sum(r.skipped_updates for r in records),
    )


def intervals(records: Sequence[StepRecord], length: int) -> tuple[Interval, ...]:
    """`records` in intervals of `length` steps, the last one of what is left."""
    return tuple(_interval(records[start : start + length]) for start in range(0, len(records), length))


def retries(records: Sequence[StepRecord]) -> Retries:
    """What resampling has cost and brought over `records`."""
    generated = sum(r.generated_tokens for r in records)
    informative = sum(r.informative_groups for r in records)
    return Retries(
        rescued=_by_rung(r.rescued for r in records),
        extra_tokens=sum(r.extra_tokens for r in records),
        tokens_per_informative_group=ratio(generated, informative),
        groups_exhausted=sum(r.groups_exhausted for r in records),
    )


def _by_rung(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Sums for each rung; a later trigger may have a longer ladder than the first steps had."""
    return tuple(sum(rung) for rung in zip_longest(*counts, fillvalue=0))


def _by_difficulty(shares: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean share of each difficulty over the steps that had it."""
    steps = list(shares)
    names = sorted({name for shares_of_step in steps for name in shares_of_step})
    return measured({name: mean(own[name] for own in steps if name in own) for name in names})


def _interval(records: Sequence[StepRecord]) -> Interval:
    return Interval(
        first=records[0].step,
        last=records[-1].step,
        resamples=sum(sum(r.resamples) for r in records),
        reward_mean=mean(r.reward_mean for r in records),
    )
