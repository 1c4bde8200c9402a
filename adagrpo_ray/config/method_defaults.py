"""Values of settings of the algorithm that are null, by `algorithm.name`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TrainOn = Literal["last", "all", "balanced", "max_variance"]

GROUPS_OF_A_MINI_BATCH = 2
"""Fewest groups with an advantage in each mini-batch.

An update moves the weights as far for one group as for many, so that updates on single groups follow their noise.
"""


@dataclass(frozen=True)
class MethodDefaults:
    """The values of one method.

    - `num_iterations`: the most passes over the batch of a step.
    - `most_mini_batches`: the most mini-batches of a step.
    - `train_on`: the completions that are trained on.
    """

    num_iterations: int
    most_mini_batches: int
    train_on: TrainOn

    def mini_batches_of(self, groups: int) -> int:
        """The number of mini-batches of a batch in which so many groups have an advantage."""
        return max(1, min(self.most_mini_batches, groups // GROUPS_OF_A_MINI_BATCH))


METHOD_DEFAULTS = {
    "grpo": MethodDefaults(1, 1, "last"),
    "dapo": MethodDefaults(1, 1, "last"),
    # By the runs that docs/adaptive.md names; half of the completions pay for the second pass.
    "adagrpo": MethodDefaults(2, 4, "max_variance"),
}
