"""GRPO, DAPO and adaptive GRPO as one sampling loop that treats groups without a learning signal differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adagrpo_ray.algorithm.criterion import Criterion, make_criterion, spread
from adagrpo_ray.algorithm.ladder import Ladder
from adagrpo_ray.algorithm.own_ladder import load_ladder
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.group_allocation import AllocationSettings
from adagrpo_ray.extensions.given import NOTHING, Given


@dataclass(frozen=True)
class Method:
    """How groups are sampled.

    - `criterion`: whether a group is ready.
    - `ladder`: the next attempt of a group that is not ready.
    - `refill`: whether an exhausted or failed group makes room for a new prompt in the same step.
    - `drop_exhausted`: whether exhausted groups are left out of the training batch.
    - `allocation`: the settings that choose the group sizes; None if all groups have the same size.
    """

    criterion: Criterion
    ladder: Ladder
    refill: bool
    drop_exhausted: bool
    allocation: AllocationSettings | None = None


def make_method(settings: AlgorithmSettings, functions: Sequence[str], given: Given = NOTHING) -> Method:
    """The method that `settings.name` names; `functions` are the names of the reward functions.

    - `grpo`: every group is trained on after one attempt (arXiv 2402.03300).
    - `dapo`: groups with zero reward std are dropped, and other prompts are sampled until the step is full (dynamic
      sampling, arXiv 2503.14476, section 3.2).
    - `adagrpo`: groups that fail are resampled on the ladder of the triggers or on the user's own, and the results of
      earlier epochs choose the group sizes.

    Raises ConfigError if the criterion or the ladder cannot be loaded or called.
    """
    base = settings.sampling
    match settings.name:
        case "grpo":
            return Method(lambda group: True, Ladder(base), refill=False, drop_exhausted=False)
        case "dapo":
            return Method(spread(0.0), Ladder(base), refill=True, drop_exhausted=True)
        case "adagrpo":
            ladder = Ladder(base, tuple((t.from_step, t.ladder()) for t in settings.triggers))
            return Method(
                make_criterion(settings.criterion, functions, given),
                ladder if settings.ladder is None else load_ladder(settings.ladder, ladder, given),
                refill=False,
                drop_exhausted=settings.on_exhausted == "drop",
                allocation=settings.allocation if settings.allocates else None,
            )
