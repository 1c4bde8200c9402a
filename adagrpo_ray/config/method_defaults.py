"""Values of settings of the algorithm that are null, by `algorithm.name`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TrainOn = Literal["last", "all", "balanced", "max_variance"]

PROMPTS_OF_A_MINI_BATCH = 4
"""Fewest prompts of a step for each mini-batch.

With two prompts of a step for each of them, the accuracy of SmolLM2 fell again on one seed of the benchmark `real`.
"""


@dataclass(frozen=True)
class MethodDefaults:
    """The values of one method.

    - `num_iterations`: passes over the batch of a step.
    - `most_mini_batches`: the most mini-batches of a step.
    - `train_on`: the completions that are trained on.
    """

    num_iterations: int
    most_mini_batches: int
    train_on: TrainOn

    def mini_batches_of(self, prompts: int) -> int:
        """The number of mini-batches of a step with so many prompts."""
        return max(1, min(self.most_mini_batches, prompts // PROMPTS_OF_A_MINI_BATCH))


METHOD_DEFAULTS = {
    "grpo": MethodDefaults(1, 1, "last"),
    "dapo": MethodDefaults(1, 1, "last"),
    # By the runs that docs/adaptive.md names; half of the completions pay for the second pass.
    "adagrpo": MethodDefaults(2, 4, "max_variance"),
}
