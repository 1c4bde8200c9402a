"""From groups to training samples: advantages from cached statistics, and token weights over the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from adagrpo_ray.algorithm.advantage import advantages
from adagrpo_ray.algorithm.loss import token_weights
from adagrpo_ray.algorithm.selection import balanced, max_variance
from adagrpo_ray.algorithm.statistics import RewardStatistics, statistics_of
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.types import Completion, Floats, Group, Prompt, TrainSample

Scored = tuple[Completion, float]
"""A completion with its reward or its advantage."""


def training_samples(
    groups: Sequence[Group], settings: AlgorithmSettings, max_new_tokens: int, left_out: int = 0
) -> tuple[TrainSample, ...]:
    """The completions that `settings.selection` picks, with their advantages and token weights.

    Lengths are those of the tokens that the policy wrote, and observed tokens have a weight of 0. Completions without
    weight (empty or `is_masked`) count in `token_weights` and are then left out. Completions with an advantage of zero
    are left out, too, unless a KL term or an entropy bonus gives them a gradient; the loss is the same without them.

    Prompts that were `left_out` count as groups without a gradient, since most groups of solved prompts have none or
    little: with n groups, all weights are multiplied by n / (n + `left_out`). Otherwise the few groups of a late step
    would weigh as much as those of a full one, and their noise would move the policy as far.
    """
    chosen = [
        (group.prompt, completion, advantage)
        for group, pairs in zip(groups, picked(groups, settings), strict=True)
        for completion, advantage in pairs
    ]
    masked = [is_masked(completion, settings) for _, completion, _ in chosen]
    lengths = [completion.policy_tokens for _, completion, _ in chosen]
    share = np.float32(len(groups) / max(1, len(groups) + left_out))
    weights = [share * weight for weight in token_weights(lengths, settings.loss.kind, max_new_tokens, masked)]
    other_gradient = settings.loss.beta > 0.0 or settings.loss.entropy_coef > 0.0
    return tuple(
        _sample(prompt, completion, _of_all_tokens(weight, completion), advantage)
        for (prompt, completion, advantage), weight in zip(chosen, weights, strict=True)
        if weight.any() and (advantage != 0.0 or other_gradient)
    )


def is_masked(completion: Completion, settings: AlgorithmSettings) -> bool:
    """Whether the loss leaves a completion out because it was truncated (TRL's setting; arXiv 2503.14476, 3.4)."""
    return settings.loss.mask_truncated_completions and completion.truncated


def picked(groups: Sequence[Group], settings: AlgorithmSettings) -> list[list[Scored]]:
    """Completions of each group of a batch to train on, each with its advantage.

    `settings.selection` selects them, and `settings.advantage_statistics` the rewards whose mean and standard deviation
    their advantages use: those of all attempts, of the last one, or of the selected completions, as PODS does
    (arXiv 2504.13818; `grpo_trainer.py` of its code). Those of the batch are of the same rewards of all groups.
    """
    chosen = [_selected(group, settings) for group in groups]
    statistics = [_statistics(group, pairs, settings) for group, pairs in zip(groups, chosen, strict=True)]
    batch = reduce(RewardStatistics.merge, statistics, RewardStatistics())
    return [
        [
            (completion, float(advantage))
            for (completion, _), advantage in zip(
                pairs,
                advantages(np.array([reward for _, reward in pairs], np.float32), of_group, batch, settings),
                strict=True,
            )
        ]
        for pairs, of_group in zip(chosen, statistics, strict=True)
    ]


def _selected(group: Group, settings: AlgorithmSettings) -> list[Scored]:
    """The completions of a group to train on, each with its reward.

    They are selected from those of all attempts, unless `settings.selection` is `last`; a pilot and its commit are one
    attempt. The newest completions come first, and in a request the order is that of the seeds, which does not depend
    on the lengths of completions. So a selection of the first of several equal ones prefers the newest ones, and no
    lengths.
    """
    attempts = (group.final if settings.selection == "last" else group.attempts)[::-1]
    pool = [pair for a in attempts for pair in zip(a.completions, a.rewards.tolist(), strict=True)]
    size = settings.trained_at_most or group.size
    match settings.selection:
        case "balanced":
            places = balanced([bool(correct) for a in attempts for correct in a.correct], size)
        case "max_variance":
            places = max_variance([reward for _, reward in pool], size)
        case _:
            return pool
    return [pool[place] for place in places]


def _statistics(group: Group, selected: Sequence[Scored], settings: AlgorithmSettings) -> RewardStatistics:
    match settings.advantage_statistics:
        case "all":
            return statistics_of(group)
        case "last":
            return RewardStatistics.of(reward for attempt in group.final for reward in attempt.rewards.tolist())
        case "trained":
            return RewardStatistics.of(reward for _, reward in selected)


def broken_samples(groups: Sequence[Group]) -> tuple[TrainSample, ...]:
    """The first completion in the newest attempts whose log-probabilities are not finite, if there is one.

    Its weights are 0, and it makes the learner skip the update. Such log-probabilities come from weights or logits that
    are not finite, and rewards of such a model have no meaning, even if they are all equal.
    """
    for group in groups:
        for completion in group.last.completions:
            if not np.isfinite(completion.logprobs).all():
                return (_sample(group.prompt, completion, np.zeros(len(completion.token_ids), np.float32), 0.0),)
    return ()


def _sample(prompt: Prompt, completion: Completion, weights: Floats, advantage: float) -> TrainSample:
    return TrainSample(
        prompt_token_ids=prompt.token_ids,
        token_ids=completion.token_ids,
        behaviour_logprobs=completion.logprobs,
        token_weights=weights,
        advantage=advantage,
        difficulty=prompt.difficulty,
        observed=completion.observed,
    )


def _of_all_tokens(weights: Floats, completion: Completion) -> Floats:
    """The weights [T] of all tokens of a completion: `weights` [P] at those that the policy wrote, and 0 elsewhere."""
    if completion.observed is None:
        return weights
    every = np.zeros(len(completion.token_ids), np.float32)
    every[~completion.observed] = weights
    return every
