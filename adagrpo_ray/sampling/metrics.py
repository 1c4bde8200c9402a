"""The sampling metrics of one step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.statistics import statistics_of
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.rewards.consumption import Consumption
from adagrpo_ray.runs.measured import known, mean, measured
from adagrpo_ray.runs.sampling_metrics import SamplingMetrics
from adagrpo_ray.sampling.batch import picked
from adagrpo_ray.sampling.calibration import calibration
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.types import MAX_TURNS, Completion, Group


def sampling_metrics(
    step: int,
    collection: Collection,
    functions: Sequence[str],
    height: int,
    settings: AlgorithmSettings,
    *,
    exhausted_dropped: bool,
    consumption: Mapping[str, Consumption] | None = None,
) -> SamplingMetrics:
    """Metrics of `step`; `height` is the number of rungs, `functions` are the names of the reward functions.

    `consumption` is that of judges and reward models since the step before, by their names.
    """
    first = [g for g in collection.attempts if len(g.attempts) == 1]
    resampled = [g for g in collection.attempts if g.resamples and g.last.part != "commit"]
    pilots = [g for g in collection.attempts if g.last.part == "pilot"]
    trained = [*collection.ready, *(() if exhausted_dropped else collection.exhausted)]
    advantages = picked(trained, settings)
    resamples = Counter(g.last.rung for g in resampled)
    rescued = Counter(g.final[0].rung for g in collection.ready if g.resamples)
    lost = [f for f in collection.failed if f.dropped]  # no attempt contains their tokens
    rungs = range(max([height, *(rung + 1 for rung in (*resamples, *rescued))]))
    correct = [(g.prompt.difficulty, float(g.last.correct.mean())) for g in first]
    zero_std = [(g.prompt.difficulty, float((g.last.rewards == g.last.rewards[0]).all())) for g in first]
    zero_std_after = [(g.prompt.difficulty, float(statistics_of(g).std == 0.0)) for g in trained]
    scores = np.concatenate([g.last.rewards_by_function for g in first]) if first else np.empty((0, len(functions)))
    completions = [c for g in collection.attempts for c in g.last.completions]
    return SamplingMetrics(
        reward=mean(float(r) for g in first for r in g.last.rewards),
        reward_std=_std(np.concatenate([g.last.rewards for g in first])) if first else None,
        rewards_mean={name: mean(map(known, scores[:, i].tolist())) for i, name in enumerate(functions)},
        rewards_std={name: _std(scores[:, i]) for i, name in enumerate(functions)},
        rewards_frac_zero_std={name: _frac_zero_std(first, i) for i, name in enumerate(functions)},
        frac_reward_zero_std=mean(value for _, value in zero_std),
        frac_reward_zero_std_by_difficulty=_by_difficulty(zero_std),
        frac_reward_zero_std_after=mean(value for _, value in zero_std_after),
        frac_reward_zero_std_after_by_difficulty=_by_difficulty(zero_std_after),
        accuracy=mean(value for _, value in correct),
        accuracy_by_difficulty=_by_difficulty(correct),
        completions_mean_length=mean(float(c.policy_tokens) for c in completions),
        completions_mean_terminated_length=mean(float(c.policy_tokens) for c in completions if not c.truncated),
        completions_clipped_ratio=mean(float(c.truncated) for c in completions),
        resamples=tuple(resamples[rung] for rung in rungs),
        resamples_by_difficulty=dict(Counter(g.prompt.difficulty for g in resampled)),
        rescued=tuple(rescued[rung] for rung in rungs),
        pilots=len(pilots),
        commits=sum(g.last.part == "commit" for g in collection.attempts),
        solved_pilots=sum(bool(g.last.correct.all()) for g in pilots),
        groups_ready=len(collection.ready),
        groups_waiting=len(collection.waiting),
        groups_late=len(collection.late),
        groups_exhausted=len(collection.exhausted),
        groups_failed=len(collection.failed),
        groups_dropped=len(collection.aged) + len(lost) + (len(collection.exhausted) if exhausted_dropped else 0),
        informative_groups=sum(any(advantage for _, advantage in pairs) for pairs in advantages),
        group_size=mean(float(g.size) for g in first),
        prompts_skipped=collection.skipped,
        generated_tokens=sum(g.last.generated_tokens for g in collection.attempts) + sum(f.tokens for f in lost),
        extra_tokens=sum(g.last.generated_tokens for g in collection.attempts if g.resamples)
        + sum(f.tokens for f in lost if f.resample),
        # The weights that this step trains are of the version of the step before.
        staleness=mean(float(step - 1 - c.weight_version) for pairs in advantages for c, _ in pairs),
        **calibration(collection.forecasts),
        **judge_metrics(consumption or {}),
        **_of_episodes([c for c in completions if c.turns]),
    )


def judge_metrics(consumption: Mapping[str, Consumption]) -> dict[str, Any]:
    """The metrics of judges and reward models, by field."""
    return {
        "judge_requests": {name: c.requests for name, c in consumption.items()},
        "judge_prompt_tokens": {name: c.prompt_tokens for name, c in consumption.items()},
        "judge_completion_tokens": {name: c.completion_tokens for name, c in consumption.items()},
        "judge_cache_hits": {name: c.cache_hits for name, c in consumption.items()},
        "judge_failures": {name: c.failures for name, c in consumption.items()},
        "judge_cost": {name: c.cost for name, c in consumption.items() if c.cost is not None},
    }


def _of_episodes(episodes: Sequence[Completion]) -> dict[str, Any]:
    """The metrics of completions that have turns, by field; none if there are none."""
    if not episodes:
        return {}
    turns = [turn for episode in episodes for turn in episode.turns]
    return {
        "episodes_turns_mean": len(turns) / len(episodes),
        "episodes_length_mean": mean(float(len(episode.token_ids)) for episode in episodes),
        "episodes_observed_tokens": sum(len(episode.token_ids) - episode.policy_tokens for episode in episodes),
        "episodes_clipped_ratio": mean(float(episode.finish_reason == MAX_TURNS) for episode in episodes),
        "tools_calls": sum(bool(turn.tool) for turn in turns),
        "tools_errors": sum(bool(turn.error) for turn in turns),
    }


def _by_difficulty(values: Sequence[tuple[str, float]]) -> dict[str, float]:
    difficulties: dict[str, list[float]] = defaultdict(list)
    for difficulty, value in values:
        difficulties[difficulty].append(value)
    return measured({difficulty: mean(difficulties[difficulty]) for difficulty in sorted(difficulties)})


def _std(values: NDArray[np.floating[Any]]) -> float | None:
    """Sample standard deviation of the scores that are not NaN; None for fewer than two."""
    applicable = values[~np.isnan(values)].astype(np.float64)
    return float(applicable.std(ddof=1)) if len(applicable) > 1 else None


def _frac_zero_std(groups: Sequence[Group], function: int) -> float | None:
    """Share of groups whose newest scores by a function are all equal, among groups with at least two scores."""
    columns = (group.last.rewards_by_function[:, function] for group in groups)
    applicable = [column[~np.isnan(column)] for column in columns]
    return mean(float((column == column[0]).all()) for column in applicable if len(column) > 1)
