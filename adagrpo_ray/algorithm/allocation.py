"""The number of completions of a prompt, chosen in each epoch from the posterior of its success rate."""

from __future__ import annotations

from dataclasses import dataclass

from adagrpo_ray.config.algorithm import AllocationSettings


@dataclass(frozen=True)
class Posterior:
    """Beta(1 + correct, 1 + wrong) over the success rate of a prompt; the counts of earlier epochs are discounted."""

    correct: float = 0.0
    wrong: float = 0.0

    def after(self, correct: int, wrong: int, discount: float) -> Posterior:
        """The posterior after one more epoch; `discount` multiplies earlier counts, since the policy has changed."""
        return Posterior(discount * self.correct + correct, discount * self.wrong + wrong)

    @property
    def mean(self) -> float:
        """Expected success rate."""
        return (1 + self.correct) / (2 + self.correct + self.wrong)


@dataclass(frozen=True)
class Share:
    """A prompt's share of an epoch: completions of its group, and how many rungs above the base it starts."""

    size: int
    start: int


def allocate(posterior: Posterior | None, epoch: int, settings: AllocationSettings, default: int) -> Share | None:
    """The share of a prompt in its `epoch`-th epoch (from 0); None if the prompt is solved and left out this time.

    A prompt without a posterior gets `default` completions. Otherwise its group has the smallest size that contains
    both correct and wrong completions with probability `settings.informative`, within `settings.sizes(default)`. For
    success rate p and n completions, that probability is 1 - p^n - (1 - p)^n. A prompt whose rate is below `hard_below`
    starts on the first rung.

    Worked example: to reach 0.9, p = 0.5 needs 5 completions (1 - 2 / 32 = 0.94), and p = 0.1 needs 22.
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
