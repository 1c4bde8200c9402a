"""Estimates from sampled completions: pass@k, and intervals of shares and of means over problems."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054  # of the normal distribution, two-sided
CHUNK = 64  # draws at a time, which limits the memory with many problems


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k completions is correct, if `correct` of n were.

    It is 1 - C(n - correct, k) / C(n, k), which is the share of all choices of k among the n that contain a correct one
    (Chen et al., "Evaluating Large Language Models Trained on Code", 2021, eq. 1). Raises ValueError unless 0 <=
    correct <= n and 1 <= k <= n. Worked example: n = 4, correct = 1, k = 2 gives 1 - 3/6 = 0.5.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {correct} correct completions in {n}; give 0 <= correct <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def powers_of_two(n: int) -> tuple[int, ...]:
    """1, 2, 4 ... below n, and n itself."""
    return (*(1 << i for i in range((n - 1).bit_length())), n)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of the share `successes` / n (Wilson, "Probable inference", 1927); valid for 0 and n, too."""
    share, squared = successes / n, Z_95 * Z_95 / n
    half = Z_95 * math.sqrt(share * (1 - share) / n + squared / (4 * n))
    low, high = ((share + squared / 2 + sign * half) / (1 + squared) for sign in (-1, 1))
    return low if successes else 0.0, high if successes < n else 1.0  # exact at the ends, without rounding errors


def bootstrap_means(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Column means [draws, M] of `values` [P, M], each over P problems that are drawn with replacement.

    All columns share the draws, so that differences between them are paired. A seed always gives the same draws.
    """
    problems = len(values)
    rng, even = np.random.default_rng(seed), np.full(problems, 1 / problems)
    parts = [
        rng.multinomial(problems, even, size=min(CHUNK, draws - done)) @ values / problems
        for done in range(0, draws, CHUNK)
    ]
    return np.concatenate(parts)
