"""What a step's sampling says in figures."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adagrpo_ray.learner.sampler import Collection


@dataclass(frozen=True)
class SamplingFigures:
    """The part of a step's record that the sampler knows; see `StepRecord` for each field.

    Rewards and accuracy are those of first attempts only, since stopping at a success biases the rest.
    """

    reward_mean: float
    reward_by_function: Mapping[str, float]
    accuracy: float
    accuracy_by_level: Mapping[str, float]
    groups_ready: int
    groups_waiting: int
    groups_exhausted: int
    groups_dropped: int
    resamples: tuple[int, ...]
    resamples_by_level: Mapping[str, int]
    flat_before: float
    flat_after: float
    generated_tokens: int
    completion_length: float


def sampling_figures(
    collection: Collection, functions: Sequence[str], height: int, *, exhausted_dropped: bool
) -> SamplingFigures:
    """Figures of one step; `height` is the ladder's number of rungs, `functions` the reward functions' names."""
    first = [g for g in collection.attempts if len(g.attempts) == 1]
    resampled = [g for g in collection.attempts if len(g.attempts) > 1]
    trained = [*collection.ready, *(() if exhausted_dropped else collection.exhausted)]
    rungs = Counter(g.last.rung for g in resampled)
    correct_by_level: dict[str, list[float]] = defaultdict(list)
    for group in first:
        correct_by_level[group.prompt.level].append(float(group.last.correct.mean()))
    scores = np.concatenate([g.last.rewards_by_function for g in first]) if first else np.empty((0, len(functions)))
    completions = [c for g in collection.attempts for c in g.last.completions]
    return SamplingFigures(
        reward_mean=_mean(float(r) for g in first for r in g.last.rewards),
        reward_by_function={name: _mean(scores[:, i].tolist()) for i, name in enumerate(functions)},
        accuracy=_mean(v for values in correct_by_level.values() for v in values),
        accuracy_by_level={level: _mean(values) for level, values in sorted(correct_by_level.items())},
        groups_ready=len(collection.ready),
        groups_waiting=len(collection.waiting),
        groups_exhausted=len(collection.exhausted),
        groups_dropped=len(collection.aged) + (len(collection.exhausted) if exhausted_dropped else 0),
        resamples=tuple(rungs[i] for i in range(max(height, max(rungs, default=-1) + 1))),
        resamples_by_level=dict(Counter(g.prompt.level for g in resampled)),
        flat_before=_mean(float(np.ptp(g.attempts[0].rewards) == 0.0) for g in first),
        flat_after=_mean(float(g.statistics.std == 0.0) for g in trained),
        generated_tokens=sum(len(c.token_ids) for c in completions),
        completion_length=_mean(float(len(c.token_ids)) for c in completions),
    )


def _mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there are none."""
    known = [v for v in values if not math.isnan(v)]
    return math.fsum(known) / len(known) if known else math.nan
