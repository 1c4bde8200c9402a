"""The criterion: whether a group needs no further attempt.

A criterion is a function of the group with all of its attempts. It is called after each attempt; with pilots, after
each pilot that has a wrong completion, and again if a later step continues with a pilot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from adagrpo_ray.algorithm.statistics import statistics_of
from adagrpo_ray.config.algorithm import CriterionSettings
from adagrpo_ray.errors import ExtensionError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.extensions.loading import check_call, describe_error, load_function
from adagrpo_ray.types import Group

Criterion = Callable[[Group], bool]

BUILT_IN = ("any_correct", "any_above", "spread", "balanced")

SETTING = "algorithm.criterion.kind"
"""The setting that names the criterion."""


def any_correct(group: Group) -> bool:
    """Whether some completion of the last attempt is correct."""
    return bool(group.last.correct.any())


def any_above(threshold: float, column: int | None) -> Criterion:
    """The criterion that some completion of the last attempt has a reward above `threshold`.

    The reward is the weighted sum or, with a `column`, the score of one reward function. The original code requires a
    positive score of the last reward function of the list, which checks the answer.
    """

    def satisfied(group: Group) -> bool:
        rewards = group.last.rewards if column is None else group.last.rewards_by_function[:, column]
        return bool((rewards > threshold).any())  # NaN, of a function that does not apply, compares as False

    return satisfied


def spread(threshold: float) -> Criterion:
    """The criterion that the std of the rewards of all attempts is above `threshold`, so that advantages differ."""
    return lambda group: statistics_of(group).std > threshold


def balanced(group: Group) -> bool:
    """Whether all attempts together have half of `group.size`, rounded up, of correct and of wrong completions each.

    The exit condition of Reinforce-Ada-balance (arXiv 2510.04996, section 3). It also fails a group whose completions
    are all correct.
    """
    correct = sum(int(attempt.correct.sum()) for attempt in group.attempts)
    wrong = sum(len(attempt.correct) for attempt in group.attempts) - correct
    return min(correct, wrong) >= (group.size + 1) // 2


def own(criterion: Callable[[Group], object], name: str) -> Criterion:
    """The user's own criterion, called `name`.

    Calling it raises ExtensionError if the criterion raises an error or returns neither True nor False.
    """

    def satisfied(group: Group) -> bool:
        try:
            answer = criterion(group)
        except BaseException as error:  # SystemExit too: it would end the thread that all sampling runs in
            raise ExtensionError(f"{SETTING}: {name!r} raised {describe_error(error)}; fix it") from error
        if not isinstance(answer, bool | np.bool_):
            raise ExtensionError(f"{SETTING}: {name!r} returned {answer!r:.300}; have it return True or False")
        return bool(answer)

    return satisfied


def make_criterion(settings: CriterionSettings, functions: Sequence[str], given: Given = NOTHING) -> Criterion:
    """The criterion that the settings name; `functions` are the names of the reward functions, in order.

    A kind is the name of a built-in criterion, 'module:function', or the name of a function in `given`. Raises
    ConfigError for any other kind, and for a function that cannot be called with a Group.
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
        case "balanced":
            return balanced
    criterion = load_function(settings.kind, SETTING, BUILT_IN, given)
    check_call(criterion, f"{SETTING}: {settings.kind!r}", ["group"])
    return own(criterion, settings.kind)
