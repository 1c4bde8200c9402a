"""How many completions a prompt gets: a posterior of its success rate decides at its next epoch."""

from __future__ import annotations

from dataclasses import dataclass

from adagrpo_ray.config.algorithm import AllocationSettings


@dataclass(frozen=True)
class Posterior:
    """Beta(1 + correct, 1 + wrong) over a prompt's success rate, from the discounted counts of its epochs."""

    correct: float = 0.0
    wrong: float = 0.0

    def after(self, correct: int, wrong: int, discount: float) -> Posterior:
        """The posterior after one more epoch; older ones count `discount` as much, since the policy has moved."""
        return Posterior(discount * self.correct + correct, discount * self.wrong + wrong)

    @property
    def mean(self) -> float:
        """Expected success rate."""
        return (1 + self.correct) / (2 + self.correct + self.wrong)


@dataclass(frozen=True)
class Share:
    """A prompt's share of an epoch: completions of its group, and how many rungs it starts above the base."""

    size: int
    start: int


def allocate(posterior: Posterior | None, epoch: int, settings: AllocationSettings, default: int) -> Share | None:
    """The share of a prompt at its `epoch`-th epoch (from 0); None: not this time, it is solved.

    Without a posterior it gets `default` completions. Else its group is the smallest that holds correct and wrong
    completions with probability `settings.informative`, which for success rate p and n completions is
    1 - p^n - (1 - p)^n, within `settings.sizes(default)`. Worked example: p = 0.5 asks for 5 completions to
    reach 0.9 (1 - 2 / 32 = 0.94), p = 0.1 for 22. A prompt below `hard_below` starts on the first rung.
    """
    if posterior is None:
        return Share(default, 0)
    p = posterior.mean
    if p > settings.solved_above and epoch % settings.solved_every:
        return None
    size, most = settings.sizes(default)
    while size < most and 1 - p**size - (1 - p) ** size < settings.informative:
        size += 1
    return Share(size, int(p < settings.hard_below))
