"""When a group has taught enough, so that it is not sampled again.

A criterion is a function of the group. It sees all attempts, and is asked after each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adagrpo_ray.config.algorithm import CriterionSettings
from adagrpo_ray.extension import load_function
from adagrpo_ray.types import Group

Criterion = Callable[[Group], bool]

BUILT_IN = ("any_correct", "any_above", "spread")


def any_correct(group: Group) -> bool:
    """Some completion of the last attempt is right."""
    return bool(group.last.correct.any())


def any_above(threshold: float, column: int | None) -> Criterion:
    """Some completion of the last attempt scores above `threshold`: in total, or by one reward function.

    The original's rule is a positive score of the answer's reward function, the last one of the list.
    """

    def satisfied(group: Group) -> bool:
        rewards = group.last.rewards if column is None else group.last.rewards_by_function[:, column]
        return bool((rewards > threshold).any())  # NaN, where the function does not apply, is above nothing

    return satisfied


def spread(threshold: float) -> Criterion:
    """The rewards of all attempts have a standard deviation above `threshold`, so that advantages differ."""
    return lambda group: group.statistics.std > threshold


def make_criterion(settings: CriterionSettings, functions: Sequence[str]) -> Criterion:
    """The criterion that the settings name; `functions` are the reward functions' names, in order.

    A kind 'module:function' is the user's own function of a Group. Raises ConfigError for a kind that is
    neither that nor built in.
    """
    match settings.kind:
        case "any_correct":
            return any_correct
        case "any_above":
            return any_above(
                settings.threshold, functions.index(settings.reward) if settings.reward is not None else None
            )
        case "spread":
            return spread(settings.threshold)
    return load_function(settings.kind, "algorithm.criterion.kind", BUILT_IN)
