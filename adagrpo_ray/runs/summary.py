"""The sum of a run's steps, and of some steps in a row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from adagrpo_ray.runs.measured import mean, measured, ratio
from adagrpo_ray.runs.record import Record
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord


@dataclass(frozen=True)
class Interval(Record):
    """Some steps in a row, `first` to `last`: their resamples over all rungs and their mean reward."""

    first: int
    last: int
    resamples: int
    reward: float | None

    def to_dict(self) -> dict[str, object]:
        """The interval with `from` and `to` as its keys, which Python cannot have as names of fields."""
        return {"from": self.first, "to": self.last, "resamples": self.resamples, "reward": self.reward}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The interval whose `to_dict` gave `values`; raises KeyError if one is missing."""
        return cls(values["from"], values["to"], values["resamples"], values["reward"])


@dataclass(frozen=True)
class Retries(Record):
    """Cost and result of resampling over some steps; `rescued` is by rung."""

    rescued: tuple[int, ...]
    extra_tokens: int
    tokens_per_informative_group: float | None
    groups_exhausted: int


@dataclass(frozen=True)
class Summary(Record):
    """A whole run. `seconds` is the time of its steps, without start-up and evaluations.

    The shares of groups with zero reward std by difficulty are means over the steps that had groups of the difficulty.
    """

    eval_accuracy_before: float | None
    eval_accuracy_after: float | None
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
    eval_accuracy_by_difficulty_before: Mapping[str, float]
    eval_accuracy_by_difficulty_after: Mapping[str, float]
    resamples_by_difficulty: Mapping[str, int]
    frac_reward_zero_std_by_difficulty: Mapping[str, float]
    frac_reward_zero_std_after_by_difficulty: Mapping[str, float]
    resamples_by_interval: tuple[Interval, ...]
    name: str
    folder: Path | str
    adapter: Path | str
    skipped_updates: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The summary whose `to_dict` gave `values`, its folders as text; raises as `Record.from_dict` does."""
        found = super().from_dict(values)
        intervals = tuple(Interval.from_dict(interval) for interval in values["resamples_by_interval"])
        return replace(found, resamples_by_interval=intervals)


def summarize(
    records: Sequence[StepRecord],
    before: EvaluationRecord | None,
    after: EvaluationRecord | None,
    *,
    name: str,
    folder: Path | str,
    adapter: Path | str,
) -> Summary:
    """The sum of a run's steps, in at most ten intervals; accuracies without an evaluation are None."""
    return Summary(
        eval_accuracy_before=before.accuracy if before else None,
        eval_accuracy_after=after.accuracy if after else None,
        steps=len(records),
        generated_tokens=sum(r.generated_tokens for r in records),
        trained_tokens=sum(r.trained_tokens for r in records),
        resamples=_by_rung(r.resamples for r in records),
        seconds=math.fsum(r.step_time for r in records),
        **asdict(retries(records)),
        groups_failed=sum(r.groups_failed for r in records),
        eval_accuracy_by_difficulty_before=before.accuracy_by_difficulty if before else {},
        eval_accuracy_by_difficulty_after=after.accuracy_by_difficulty if after else {},
        resamples_by_difficulty=dict(sum((Counter(r.resamples_by_difficulty) for r in records), Counter())),
        frac_reward_zero_std_by_difficulty=_by_difficulty(r.frac_reward_zero_std_by_difficulty for r in records),
        frac_reward_zero_std_after_by_difficulty=_by_difficulty(
            r.frac_reward_zero_std_after_by_difficulty for r in records
        ),
        resamples_by_interval=intervals(records, max(1, math.ceil(len(records) / 10))),
        name=name,
        folder=folder,
        adapter=adapter,
        skipped_updates=sum(r.skipped_updates for r in records),
    )


def intervals(records: Sequence[StepRecord], length: int) -> tuple[Interval, ...]:
    """`records` in intervals of `length` steps; the last one may be shorter."""
    return tuple(_interval(records[start : start + length]) for start in range(0, len(records), length))


def retries(records: Sequence[StepRecord]) -> Retries:
    """Cost and result of resampling over `records`."""
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
        reward=mean(r.reward for r in records),
    )
