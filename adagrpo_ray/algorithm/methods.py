"""GRPO, DAPO and adaptive GRPO as the same sampling with different answers to a group that teaches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adagrpo_ray.algorithm.criterion import Criterion, make_criterion, spread
from adagrpo_ray.algorithm.ladder import Ladder
from adagrpo_ray.algorithm.own_ladder import load_ladder
from adagrpo_ray.config.algorithm import AlgorithmSettings, AllocationSettings
from adagrpo_ray.extensions.given import NOTHING, Given


@dataclass(frozen=True)
class Method:
    """How groups are sampled: the criterion of a ready one, the ladder of failing ones, and the end of exhausted ones.

    `refill`: a group that failed for good makes room for a new prompt of the same step. `drop_exhausted`: it
    is not trained on. `allocation` sizes the groups; None: all alike.
    """

    criterion: Criterion
    ladder: Ladder
    refill: bool
    drop_exhausted: bool
    allocation: AllocationSettings | None = None


def make_method(settings: AlgorithmSettings, functions: Sequence[str], given: Given = NOTHING) -> Method:
    """The method that `settings.name` names; `functions` are the reward functions' names.

    `grpo`: every group is trained on as it is (arXiv 2402.03300). `dapo`: groups with zero reward std
    are dropped and other prompts sampled until the step is full (dynamic sampling, arXiv 2503.14476, section
    3.2). `adagrpo`: failing groups climb the ladder of the triggers, or one of the user's own, and
    earlier results size the groups. Raises ConfigError for a bad criterion or ladder.
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
                allocation=settings.allocation if settings.allocation.enabled else None,
            )
