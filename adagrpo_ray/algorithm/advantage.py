"""Advantages from the statistics of a group and of the batch."""

from __future__ import annotations

import math

import numpy as np

from adagrpo_ray.algorithm.statistics import RewardStatistics
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.types import Floats


def advantages(
    rewards: Floats, group: RewardStatistics, batch: RewardStatistics, settings: AlgorithmSettings
) -> Floats:
    """Advantages [N] of rewards [N] of one group: (reward - mean of the group) / scale, clipped to +-bound.

    `group` has the statistics of the group, usually of the rewards of all attempts, including these. So a success in
    the last attempt stands out against every earlier failure. `batch` has those of all groups of the batch together.
    Standard deviations are of the sample. Without a scale above 0 there is nothing to compare with, and all advantages
    are 0: also those of rewards beyond the statistics, if they are of the last attempt alone and its rewards are equal.
    The scale is, by `settings.advantage_scale`:

    - `std`: the group's standard deviation + epsilon. With one attempt this is GRPO's advantage (DeepSeekMath, arXiv
      2402.03300, section 4.1.2).
    - `none`: 1 (Dr. GRPO, arXiv 2503.20783, section 3.2).
    - `batch`: the batch's standard deviation + epsilon (Lite PPO, arXiv 2508.08221; `scale_rewards="batch"` of TRL).
    - `mean`: the group's mean (MaxRL, arXiv 2602.02710). If its lowest reward is below 0, the mean of the rewards minus
      that one, so that rewards of -1 and 1 have the advantages of 0 and 1. The advantage of one of its rewards is then
      at most their number - 1, which a single success reaches.

    Worked example: failures [0, 0, 0, 0] followed by [1, 0, 0, 0] have mean 1/8 and std 0.35355. The advantages of the
    second attempt are [2.4742, -0.3535, -0.3535, -0.3535] with `std`, [0.875, -0.125, -0.125, -0.125] with `none`, and
    [7, -1, -1, -1] with `mean`.
    """
    match settings.advantage_scale:
        case "std":
            scale, added = group.std, settings.advantage_epsilon
        case "none":
            scale, added = 1.0, 0.0
        case "batch":
            scale, added = batch.std, settings.advantage_epsilon
        case "mean":
            scale, added = group.mean - min(0.0, group.lowest), 0.0
    divisor, bound = scale + added if scale > 0.0 else math.inf, settings.largest_advantage
    return np.clip((rewards.astype(np.float64) - group.mean) / divisor, -bound, bound).astype(np.float32)
