"""The posterior of a prompt's success rate, from the results of earlier epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Posterior:
    """Beta(1 + correct, 1 + wrong) over the success rate of a prompt; the counts of earlier epochs are discounted."""

    correct: float = 0.0
    wrong: float = 0.0

    def after(self, correct: int, wrong: int, discount: float) -> Posterior:
        """The posterior after one more epoch; `discount` multiplies earlier counts, since the policy has changed."""
        return Posterior(discount * self.correct + correct, discount * self.wrong + wrong)

    def limited(self, completions: float) -> Posterior:
        """A posterior with the same mean, and no more certain than one of so many completions.

        A difficulty class has many completions, but they are of other prompts.
        """
        if self.correct + self.wrong <= completions:
            return self
        weight = 2 + completions
        return Posterior(weight * self.mean - 1, weight * (1 - self.mean) - 1)

    @property
    def mean(self) -> float:
        """Expected success rate."""
        return (1 + self.correct) / (2 + self.correct + self.wrong)

    def expected(self, correct: int, wrong: int) -> float:
        """E[p^correct (1 - p)^wrong] for the success rate p.

        For Beta(a, b) it is B(a + correct, b + wrong) / B(a, b), with the beta function B.
        Worked example: without results p is uniform, and E[p (1 - p)^2] = B(2, 3) / B(1, 1) = 1/12.
        """
        a, b = 1 + self.correct, 1 + self.wrong
        return math.exp(_log_beta(a + correct, b + wrong) - _log_beta(a, b))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
