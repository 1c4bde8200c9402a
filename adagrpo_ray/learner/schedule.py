"""The learning rate of an update, computed only from the number of its step."""

from __future__ import annotations

import math

from adagrpo_ray.config.tree import Config


def learning_rate(config: Config, step: int, update: int = 0) -> float:
    """The learning rate of an update; `step` is counted from 1, and `update` from 0 within its step.

    Every step advances the schedule by `algorithm.updates_per_batch` updates, even if it trains on nothing or skips an
    update. So the schedule ends with the run. The factors are those of Transformers' get_scheduler
    (`constant_with_warmup`, `linear`, `cosine`). With a warm-up, the first update of the run has a rate of 0.
    """
    s, per_step = config.learner, config.algorithm.updates_per_batch
    total = config.run.steps * per_step
    done, warmup = (step - 1) * per_step + update, warmup_updates(config)
    if done < warmup:
        return s.learning_rate * (done / warmup)
    left = max(0.0, (total - done) / max(1, total - warmup))
    match s.schedule:
        case "constant":
            return s.learning_rate
        case "linear":
            return s.learning_rate * left
        case "cosine":
            return s.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))


def warmup_updates(config: Config) -> int:
    """The number of updates in which the learning rate rises from 0 to its peak."""
    return round(config.learner.warmup_ratio * config.run.steps * config.algorithm.updates_per_batch)
