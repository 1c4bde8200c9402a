"""How completions are scored.

`functions` and `latex` are the built-in reward functions, `registry` finds them and yours by name and checks
their contract, and `scorer` runs them in processes of their own.
"""

from adagrpo_ray.rewards.registry import Scores, load_reward
from adagrpo_ray.rewards.scorer import RewardScorer

__all__ = ["RewardScorer", "Scores", "load_reward"]
