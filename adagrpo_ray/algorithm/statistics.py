"""Running statistics of rewards, which merge over the attempts of a group."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from adagrpo_ray.types import Group


@dataclass(frozen=True)
class RewardStatistics:
    """Count, mean, sum of squared deviations (`m2`) and minimum of rewards.

    Merging is exact: any partition of the same rewards gives the same statistics (Chan, Golub and LeVeque, "Updating
    formulae and a pairwise algorithm for computing sample variances", 1979, eq. 2.1).
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    lowest: float = math.inf

    @classmethod
    def of(cls, rewards: Iterable[float]) -> RewardStatistics:
        """Statistics of `rewards`. Raises ValueError if one of them is not finite."""
        values = [float(r) for r in rewards]
        for value in values:
            if not math.isfinite(value):
                raise ValueError(f"a reward is {value}; statistics take finite rewards only")
        if not values:
            return cls()
        lowest = min(values)
        # The quotient of equal values may be rounded to one of their neighbours.
        mean = min(max(values), max(lowest, math.fsum(values) / len(values)))
        return cls(len(values), mean, math.fsum((v - mean) ** 2 for v in values), lowest)

    def merge(self, other: RewardStatistics) -> RewardStatistics:
        """Statistics of both sets of rewards together."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        return RewardStatistics(
            count=count,
            mean=self.mean + delta * other.count / count,
            m2=self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            lowest=min(self.lowest, other.lowest),
        )

    @property
    def std(self) -> float:
        """Sample standard deviation (divisor n - 1); 0.0 for fewer than two rewards."""
        return math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 0.0


def statistics_of(group: Group) -> RewardStatistics:
    """Statistics of the rewards of all attempts. Raises ValueError if a reward is not finite."""
    found = RewardStatistics()
    for attempt in group.attempts:
        found = found.merge(RewardStatistics.of(attempt.rewards.tolist()))
    return found
