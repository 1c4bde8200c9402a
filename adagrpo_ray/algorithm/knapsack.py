"""Divides a total of completions among prompts by the value of one more completion for each."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from adagrpo_ray.algorithm.posterior import Posterior


def gain(posterior: Posterior, size: int) -> float:
    """The value that one more completion adds to a group of `size`.

    For success rate p, n completions have the value (1 - p^n - (1 - p)^n) p (1 - p)^2: the probability of a gradient
    that is not zero, times the gain in success rate of an update (Knapsack RL, arXiv 2509.25849: ProbNonZeroGradient x
    InfoGain; `solve_by_dp` of its code). One more completion adds p^2 (1 - p)^(n + 2) + p^(n + 1) (1 - p)^3. The paper
    takes the success rate of the last epoch for p. This is the expectation over the posterior, in closed form, so that
    an unknown success rate is not the same as a known rate of 1/2.

    Worked example: 8 completions without earlier results gain B(3, 11) + B(10, 4) = 0.00152 from a ninth one. With a
    known rate of 1/2 they would gain 2 / 2^12 = 0.00049.
    """
    return posterior.expected(2, size + 2) + posterior.expected(size + 1, 3)


def sizes(posteriors: Sequence[Posterior], total: int, fewest: int, most: int) -> list[int]:
    """The number of completions of each prompt: the division of `total` with the largest sum of values.

    Each prompt gets at least `fewest` (2 or more) and at most `most`. The sum is `total`, unless the bounds prevent it.
    Each further completion goes to the prompt that gains most from it, and to the first of several. Gains fall with
    every completion, so no other division has a larger value. The paper uses dynamic programming, with the same result.
    """
    found = [fewest] * len(posteriors)
    gains = [(-gain(posterior, fewest), place) for place, posterior in enumerate(posteriors)] if fewest < most else []
    heapq.heapify(gains)
    for _ in range(total - sum(found)):
        if not gains:
            break
        _, place = heapq.heappop(gains)
        found[place] += 1
        if found[place] < most:
            heapq.heappush(gains, (-gain(posteriors[place], found[place]), place))
    return found
