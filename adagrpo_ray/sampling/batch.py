"""From groups to training samples: advantages from cached statistics, and token weights over the whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from adagrpo_ray.algorithm.advantage import advantages
from adagrpo_ray.algorithm.loss import token_weights
from adagrpo_ray.algorithm.statistics import statistics_of
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.types import Completion, Floats, Group, Prompt, TrainSample


def training_samples(
    groups: Sequence[Group], settings: AlgorithmSettings, max_new_tokens: int
) -> tuple[TrainSample, ...]:
    """The completions that `settings.train_on` picks, with their advantages and token weights.

    Advantages always use the statistics over all attempts. Lengths are those of the tokens that the policy wrote, and
    observed tokens have a weight of 0. Completions without weight (empty or `is_masked`) count in `token_weights` and
    are then left out. Completions with an advantage of zero are left out, too, unless a KL term or an entropy bonus
    gives them a gradient; the loss is the same without them.
    """
    chosen = [
        (group.prompt, completion, float(advantage))
        for group in groups
        for completion, advantage in picked(group, settings)
    ]
    masked = [is_masked(completion, settings) for _, completion, _ in chosen]
    lengths = [completion.policy_tokens for _, completion, _ in chosen]
    weights = token_weights(lengths, settings.loss.kind, max_new_tokens, masked)
    other_gradient = settings.loss.beta > 0.0 or settings.loss.entropy_coef > 0.0
    return tuple(
        _sample(prompt, completion, _of_all_tokens(weight, completion), advantage)
        for (prompt, completion, advantage), weight in zip(chosen, weights, strict=True)
        if weight.any() and (advantage != 0.0 or other_gradient)
    )


def is_masked(completion: Completion, settings: AlgorithmSettings) -> bool:
    """Whether the loss leaves a completion out because it was truncated (TRL's setting; arXiv 2503.14476, 3.4)."""
    return settings.loss.mask_truncated_completions and completion.truncated


def picked(group: Group, settings: AlgorithmSettings) -> Iterator[tuple[Completion, float]]:
    """Completions of one group to train on, each with its advantage; newest attempts first.

    `balanced` picks as many completions as one attempt has: up to half of them correct, then wrong ones, then more
    correct ones (arXiv 2510.04996, section 3). So many failures do not outweigh a few successes.
    """
    statistics = statistics_of(group)
    attempts = (group.last,) if settings.train_on == "last" else group.attempts[::-1]
    pool = [
        (completion, float(advantage), bool(is_correct))
        for attempt in attempts
        for completion, advantage, is_correct in zip(
            attempt.completions,
            advantages(attempt.rewards, statistics, settings.advantage_epsilon, settings.advantage_bound),
            attempt.correct,
            strict=True,
        )
    ]
    if settings.train_on == "balanced":
        size = len(group.last.completions)
        correct, wrong = [p for p in pool if p[2]], [p for p in pool if not p[2]]
        kept = min(len(correct), max(size // 2, size - len(wrong)))
        pool = [*correct[:kept], *wrong[: size - kept]]
    for completion, advantage, _ in pool:
        yield completion, advantage


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
