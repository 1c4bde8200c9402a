"""The length of the longest sequence that prompts and settings allow."""

from __future__ import annotations

from collections.abc import Iterable

from adagrpo_ray.config.tree import Config
from adagrpo_ray.types import Prompt


def longest_sequence(config: Config, prompts: Iterable[Prompt]) -> int:
    """Return the most tokens of a prompt with all that follows: `rollout.max_model_len` or, without it, as needed."""
    if config.rollout.max_model_len is not None:
        return config.rollout.max_model_len
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    return longest + config.environment.longest(config.rollout.max_new_tokens)
