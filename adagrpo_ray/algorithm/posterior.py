"""The posterior of a prompt's success rate, from results of its difficulty class and its own results.

The class is the prior: new prompts of a class are expected to be like others of today. How much it weighs depends on
how alike its prompts are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Posterior:
    """Beta(1 + correct, 1 + wrong) over the success rate of a prompt; the counts are above -1."""

    correct: float = 0.0
    wrong: float = 0.0

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


@dataclass(frozen=True)
class ClassResults:
    """Newest results of a difficulty class: discounted sums over its steps. All prompts of a step count alike.

    - `prompts`, `completions`: their numbers.
    - `shares`: the shares of correct completions, c / n for c correct ones of n, which estimate success rates p.
    - `comparisons`: prompts of each step but one, as degrees of freedom.
    - `between`, `whole`: estimates of Var[p] and of E[p] (1 - E[p]), the variance of p and that of a completion, times
      `comparisons`. Prompts are compared within a step only, since all of them change from step to step.
    """

    prompts: float = 0.0
    completions: float = 0.0
    shares: float = 0.0
    comparisons: float = 0.0
    between: float = 0.0
    whole: float = 0.0

    def after(self, counts: Sequence[tuple[int, int]], discount: float) -> ClassResults:
        """The results after a step with (c, n) of one or more prompts; `discount` multiplies the earlier sums."""
        k, shares = len(counts), [c / n for c, n in counts]
        total, squares = sum(shares), sum(share * share for share in shares)
        # E[p^2] without bias, from pairs of completions of one prompt, and E[p]^2, from pairs of prompts.
        same = sum(c * (c - 1) / (n * max(1, n - 1)) for c, n in counts) / k
        other = (total * total - squares) / (k * max(1, k - 1))
        new = (k, sum(n for _, n in counts), total, k - 1, (k - 1) * (same - other), (k - 1) * (total / k - other))
        return ClassResults(*(discount * old + more for old, more in zip(astuple(self), new, strict=True)))

    @property
    def rate(self) -> float:
        """Expected success rate of a prompt, with one correct and one wrong completion more, so never 0 or 1."""
        share = self.shares / self.prompts if self.prompts else 0.5
        return (1 + share * self.completions) / (2 + self.completions)

    @property
    def correlation(self) -> float:
        """Correlation of completions of one prompt: 0 if all prompts have the same success rate, 1 if each has 0 or 1.

        It is Var[p] / (E[p] (1 - E[p])), by the method of moments. The 1/3 of uniform success rates counts as one more
        comparison, so that few results are no proof.
        """
        observed = min(1.0, max(0.0, self.between / self.whole)) if self.whole > 0.0 else 0.0
        return (self.comparisons * observed + 1 / 3) / (self.comparisons + 1)

    def prior(self, most: float) -> Posterior:
        """The posterior of a prompt of this class without results of its own: Beta(k rate, k (1 - rate)).

        k is 1 / correlation - 1, as in a beta-binomial distribution, but at most 2 + `most`: the prior counts as at
        most so many completions of the prompt.
        """
        weight = min(1 / self.correlation - 1, 2 + most)
        return Posterior(weight * self.rate - 1, weight * (1 - self.rate) - 1)


@dataclass(frozen=True)
class PromptResults:
    """Results of one prompt in its earlier epochs: discounted counts, and the rate of its class at that time."""

    correct: float = 0.0
    wrong: float = 0.0
    class_rate: float = 0.5

    def after(self, correct: int, wrong: int, discount: float, class_rate: float) -> PromptResults:
        """The results after one more epoch, or after one more part of an epoch, with a `discount` of 1."""
        kept = discount * self._weight(class_rate)
        return PromptResults(kept * self.correct + correct, kept * self.wrong + wrong, class_rate)

    def posterior(self, prior: Posterior, class_rate: float) -> Posterior:
        """The posterior of the prompt today, from the `prior` of a prompt without results and the rate of its class."""
        kept = self._weight(class_rate)
        return Posterior(prior.correct + kept * self.correct, prior.wrong + kept * self.wrong)

    def _weight(self, class_rate: float) -> float:
        """The weight of these results now that the class has another rate.

        Results age as the policy changes, and the class shows how much it has.
        """
        return (1 - abs(class_rate - self.class_rate)) ** 2


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
