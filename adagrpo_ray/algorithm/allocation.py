"""The share of prompts in an epoch: whether they are sampled, with how many completions, and on which rung they start.

The results of earlier epochs decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from adagrpo_ray.algorithm import knapsack
from adagrpo_ray.algorithm.posterior import Posterior
from adagrpo_ray.config.group_allocation import AllocationSettings


@dataclass(frozen=True)
class Share:
    """A prompt's share of an epoch: completions of its group, and how many rungs above the base it starts."""

    size: int
    start: int


def left_out(
    posterior: Posterior | None, prompt_id: str, epoch: int, run_seed: int, settings: AllocationSettings
) -> bool:
    """Whether a prompt is left out in its `epoch`-th epoch (from 0), since it is solved or hopeless.

    Such prompts take turns: each is sampled in one of `settings.solved_every` epochs, and about as many in each epoch,
    from the first one on. The turn of a prompt is a hash of run seed and prompt. A prompt without a posterior is
    sampled.
    """
    if posterior is None or settings.hopeless_below <= posterior.mean <= settings.solved_above:
        return False
    digest = hashlib.sha256(f"{run_seed}/{prompt_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") + epoch) % settings.solved_every != 0


def allocate(
    posteriors: Sequence[Posterior | None], settings: AllocationSettings, default: int, total: int
) -> list[Share]:
    """The shares of prompts that are sampled, given their posteriors; None for a prompt without results.

    - Rule `informative`: a group has the smallest size that contains both correct and wrong completions with
      probability `settings.informative`, within `settings.sizes(default)`; `default` without a posterior. For success
      rate p and n completions, that probability is 1 - p^n - (1 - p)^n.
    - Rule `value`: the groups have `total` completions together, divided by `knapsack.sizes`.

    A prompt whose success rate is below `hard_below` starts on the first rung.

    Worked example: to be informative with probability 0.9, p = 0.5 needs 5 completions (1 - 2 / 32 = 0.94), and p = 0.1
    needs 22.
    """
    fewest, most = settings.sizes(default)
    if settings.rule == "value":
        sizes = knapsack.sizes([posterior or Posterior() for posterior in posteriors], total, fewest, most)
    else:
        sizes = [default if p is None else _informative(p.mean, fewest, most, settings) for p in posteriors]
    return [
        Share(size, int(posterior is not None and posterior.mean < settings.hard_below))
        for size, posterior in zip(sizes, posteriors, strict=True)
    ]


def _informative(p: float, fewest: int, most: int, settings: AllocationSettings) -> int:
    size = fewest
    while size < most and 1 - p**size - (1 - p) ** size < settings.informative:
        size += 1
    return size
