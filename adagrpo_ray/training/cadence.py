"""The steps after which a run is evaluated and saved, and the steps whose rollouts may run ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping

from adagrpo_ray.config.tree import Config


def evaluates_after(config: Config, step: int) -> bool:
    """Whether there is an evaluation after `step`: every `evaluation.every` steps, and at the end."""
    return step == config.run.steps or _due(config.evaluation.every, step)


def saves_after(config: Config, step: int, accuracies: Mapping[int, float]) -> bool:
    """Whether a checkpoint is written after `step`; `accuracies` are those of the evaluations so far, by step."""
    best = config.checkpoint.keep_best and _is_best(accuracies, step)
    return step == config.run.steps or _due(config.checkpoint.every, step) or best


def ahead(config: Config, step: int) -> int:
    """The last step whose rollouts may begin with those of `step`.

    No rollouts are in flight at a step after which a checkpoint may be written.
    """
    periods = (config.checkpoint.every, config.evaluation.every if config.checkpoint.keep_best else 0)
    pauses = (math.ceil(step / every) * every for every in periods if every > 0)
    return min(step + config.algorithm.max_staleness, config.run.steps, *pauses)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _is_best(accuracies: Mapping[int, float], step: int) -> bool:
    """Whether the accuracy after `step` is the best of all after training has begun; of equal ones the first is."""
    return step == max((at for at in accuracies if at > 0), key=accuracies.__getitem__, default=0)
