"""Scoring of completions.

`functions`, `latex` and `gym` have the built-in reward functions. `registry` finds them, and those of the user, by
name and checks their results. `scorer` runs them in scoring processes, and asks judges and reward models (`served`).
"""

from adagrpo_ray.rewards.registry import Scores, load_reward
from adagrpo_ray.rewards.scorer import RewardScorer

__all__ = ["RewardScorer", "Scores", "load_reward"]
