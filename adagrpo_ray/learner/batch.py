"""From groups to what the loss needs: advantages from cached statistics, weights over the whole batch."""

from __future__ import annotations

from collections.abc import Sequence

from adagrpo_ray.algorithm.advantage import advantages
from adagrpo_ray.algorithm.loss import token_weights
from adagrpo_ray.config.tree import AlgorithmSettings
from adagrpo_ray.types import Group, TrainSample


def training_samples(
    groups: Sequence[Group], settings: AlgorithmSettings, max_new_tokens: int
) -> tuple[TrainSample, ...]:
    """The completions of each group's last attempt, with their advantages and token weights.

    Cached attempts lend their statistics only. Completions whose advantage is zero count in the weights, but
    are left out where no KL term gives them a gradient: the loss is the same without them.
    """
    pairs = [
        (group.prompt, completion, float(advantage))
        for group in groups
        for completion, advantage in zip(
            group.last.completions,
            advantages(group.last.rewards, group.statistics, settings.advantage_epsilon, settings.advantage_bound),
            strict=True,
        )
    ]
    weights = token_weights([len(c.token_ids) for _, c, _ in pairs], settings.loss.kind, max_new_tokens)
    return tuple(
        TrainSample(
            prompt_token_ids=prompt.token_ids,
            token_ids=completion.token_ids,
            behaviour_logprobs=completion.logprobs,
            token_weights=weight,
            advantage=advantage,
        )
        for (prompt, completion, advantage), weight in zip(pairs, weights, strict=True)
        if advantage != 0.0 or settings.loss.beta > 0.0
    )
