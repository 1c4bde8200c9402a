"""The costs of reaching an accuracy: points of a run, their smoothing, and ratios with bootstrap intervals. All pure.

An accuracy counts as reached by the mean of WINDOW evaluations in a row, so that one lucky evaluation does not count;
the cost at which that mean crosses the target is interpolated linearly between the two evaluations around it, so that
the distance of evaluations does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from adagrpo_ray.algorithm.estimators import bootstrap_means

WINDOW = 3
DRAWS = 10_000
COSTS = ("tokens", "trained_tokens", "seconds")
"""The kinds of cost, as fields of a Point."""


@dataclass(frozen=True)
class Point:
    """An evaluation, and the costs of the training before it.

    - `tokens`: generated tokens, those of evaluations not included.
    - `trained_tokens`: tokens of completions that updates were computed on; each update on a batch counts them again.
    - `seconds`: time of the steps, without start-up and evaluations.
    - `accuracy`: on the held-out prompts; `by_class` has it by difficulty class.
    """

    step: int
    tokens: int
    trained_tokens: int
    seconds: float
    accuracy: float
    by_class: Mapping[str, float] = field(default_factory=dict)


def smoothed(points: Sequence[Point]) -> list[float]:
    """For each point the mean accuracy of the last WINDOW points up to it, of fewer at the beginning."""
    accuracies = [point.accuracy for point in points]
    return [float(np.mean(accuracies[max(0, end - WINDOW) : end])) for end in range(1, len(points) + 1)]


def cost_to(points: Sequence[Point], target: float, cost: str) -> float | None:
    """The cost at which the smoothed accuracy first reaches the target; None if it never does.

    Worked example: smoothed accuracies of 0.5 and 0.7 after 100 and 200 tokens reach 0.6 after 150.
    """
    levels, costs = smoothed(points), [float(getattr(point, cost)) for point in points]
    place = next((place for place, level in enumerate(levels) if level >= target), None)
    if place is None:
        return None
    if place == 0:
        return costs[0]
    share = (target - levels[place - 1]) / (levels[place] - levels[place - 1])
    return costs[place - 1] + share * (costs[place] - costs[place - 1])


def cost_or_bound(points: Sequence[Point], target: float, cost: str) -> float:
    """The cost of reaching the target or, if it was never reached, that of the whole run: a lower bound."""
    found = cost_to(points, target, cost)
    return float(getattr(points[-1], cost)) if found is None else found


@dataclass(frozen=True)
class Ratio:
    """Quotient of the mean costs of a method and of the base, with a 95 % interval.

    `own_bounded` and `base_bounded`: whether some run of the method or of the base did not reach the target, so that
    its cost is only a lower bound. Then the quotient is a lower bound, an upper bound, or neither.
    """

    value: float
    low: float
    high: float
    own_bounded: bool
    base_bounded: bool


def ratio(own: Sequence[Sequence[Point]], base: Sequence[Sequence[Point]], target: float, cost: str) -> Ratio | None:
    """Compare runs with the runs of the base, both in the order of their seeds; None if the base has no cost.

    The interval is the bootstrap percentiles 2.5 and 97.5 over DRAWS draws of seeds with replacement, the same seeds
    for both (Efron, "Bootstrap methods", 1979). With five seeds or fewer it is rough, and tends to be too narrow.
    """
    seeds = min(len(own), len(base))
    values = np.array([[cost_or_bound(runs[seed], target, cost) for runs in (own, base)] for seed in range(seeds)])
    if not seeds or not values[:, 1].all():
        return None
    means = values.mean(axis=0)
    draws = bootstrap_means(values, DRAWS, seed=0)
    low, high = np.percentile(draws[:, 0] / draws[:, 1], [2.5, 97.5])
    missed = [any(cost_to(points, target, cost) is None for points in runs[:seeds]) for runs in (own, base)]
    return Ratio(float(means[0] / means[1]), float(low), float(high), *missed)
