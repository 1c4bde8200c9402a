"""Advantages from the cached statistics of a group."""

from __future__ import annotations

import numpy as np

from adagrpo_ray.algorithm.statistics import RewardStatistics
from adagrpo_ray.types import Floats


def advantages(rewards: Floats, statistics: RewardStatistics, epsilon: float, bound: float) -> Floats:
    """Advantages [G] of an attempt's rewards [G]: (reward - mean) / (std + epsilon), clipped to +-bound.

    Mean and sample standard deviation are over the rewards of all attempts of the group, including this one. So a
    success in the last attempt stands out against every earlier failure. With one attempt this is GRPO's advantage
    (Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1.2). The bound has an effect only if the standard deviation
    is tiny.

    Worked example: failures [0, 0, 0, 0] followed by [1, 0, 0, 0] have mean 1/8 and std 0.35355. The advantages of the
    second attempt are [2.4742, -0.3535, -0.3535, -0.3535].
    """
    scaled = (rewards.astype(np.float64) - statistics.mean) / (statistics.std + epsilon)
    return np.clip(scaled, -bound, bound).astype(np.float32)
