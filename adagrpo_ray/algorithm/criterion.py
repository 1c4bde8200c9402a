"""When a group has taught enough, so that it is not sampled again.

A criterion is a function of the group. It sees all attempts, and is asked after each of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from adagrpo_ray.errors import ConfigError
from adagrpo_ray.extension import load_function
from adagrpo_ray.types import Group

Criterion = Callable[[Group], bool]


def any_correct(threshold: float) -> Criterion:
    """Some completion of the last attempt is right (the original's rule); takes no threshold."""
    return lambda group: bool(group.last.correct.any())


def any_above(threshold: float) -> Criterion:
    """Some completion of the last attempt has a total reward above `threshold`."""
    return lambda group: bool((group.last.rewards > threshold).any())


def spread(threshold: float) -> Criterion:
    """The rewards of all attempts have a standard deviation above `threshold`, so that advantages differ."""
    return lambda group: group.statistics.std > threshold


CRITERIA: dict[str, Callable[[float], Criterion]] = {
    "any_correct": any_correct,
    "any_above": any_above,
    "spread": spread,
}


def make_criterion(kind: str, threshold: float) -> Criterion:
    """The criterion of that name, or the user's own function of a Group where `kind` is 'module:function'.

    Raises ConfigError for a name that is neither.
    """
    if kind in CRITERIA:
        return CRITERIA[kind](threshold)
    if ":" in kind:
        return load_function(kind, "algorithm.criterion.kind")
    near = difflib.get_close_matches(kind, CRITERIA, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(CRITERIA)}, or 'module:function'"
    raise ConfigError(f"algorithm.criterion.kind={kind!r} is no criterion; {hint}")
