"""Statistics of the tokens of one update, merged exactly over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch


@dataclass(frozen=True)
class Aggregate:
    """Count, sum, minimum and maximum of some values.

    Without values the minimum is inf and the maximum is -inf. A NaN among the values makes sum, minimum and maximum
    NaN.
    """

    count: int = 0
    total: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    def merged(self, other: Aggregate) -> Aggregate:
        """The aggregate of both sets of values together."""
        return Aggregate(
            self.count + other.count,
            self.total + other.total,
            _first_nan(min, self.minimum, other.minimum),
            _first_nan(max, self.maximum, other.maximum),
        )

    @property
    def mean(self) -> float | None:
        """Mean of the values; None if there are none."""
        return self.total / self.count if self.count else None

    @property
    def low(self) -> float | None:
        """The minimum; None if there are no values."""
        return self.minimum if self.count else None

    @property
    def high(self) -> float | None:
        """The maximum; None if there are no values."""
        return self.maximum if self.count else None


@dataclass(frozen=True)
class UpdateStatistics:
    """Statistics of one optimizer step, as plain floats without gradient.

    All but `loss` give each token of weight above 0 the same weight, whatever the normalisation of the loss, as the
    metrics of TRL do (`global_masked_mean` in its grpo_trainer.py).

    - `loss`: the sum whose gradient is taken, so that the losses of micro-batches and ranks add up.
    - `tokens`: number of tokens of weight above 0; the next four count some of them.
    - `clipped_low`, `clipped_high`: the ratio is below or above the clip range, and the surrogate is clipped.
    - `truncated`, `masked`: the importance weight was truncated to a bound, or masked for being outside of the bounds.
    - `kl`: KL to the reference policy.
    - `ratio`: policy / old.
    - `importance_ratio`: the factor of the rollout correction, one value a token or, by sequence, one a completion.
    - `logp_difference`: |old - behaviour| of log-probabilities, if both are finite.
    - `entropy`, `entropy_by_difficulty`: entropy of the policy in nats.
    """

    loss: float = 0.0
    tokens: int = 0
    clipped_low: int = 0
    clipped_high: int = 0
    truncated: int = 0
    masked: int = 0
    kl: Aggregate = Aggregate()
    ratio: Aggregate = Aggregate()
    importance_ratio: Aggregate = Aggregate()
    logp_difference: Aggregate = Aggregate()
    entropy: Aggregate = Aggregate()
    entropy_by_difficulty: Mapping[str, Aggregate] = field(default_factory=dict)

    def merged(self, other: UpdateStatistics) -> UpdateStatistics:
        """The statistics of both sets of tokens together."""
        return UpdateStatistics(
            **{f.name: _merged(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        )

    def metrics(self) -> dict[str, Any]:
        """The metrics by their names in `StepRecord`; None if there are no values.

        Values that are not finite are returned as they are: the learner skips such an update, and a record refuses
        them.
        """
        counts = {
            "clip_ratio_low_mean": self.clipped_low,
            "clip_ratio_high_mean": self.clipped_high,
            "clip_ratio_region_mean": self.clipped_low + self.clipped_high,
            "importance_sampling_ratio_frac_truncated": self.truncated,
            "importance_sampling_ratio_frac_masked": self.masked,
        }
        return {
            "loss": self.loss if self.tokens else None,
            "kl": self.kl.mean,
            "policy_ratio_min": self.ratio.low,
            "policy_ratio_mean": self.ratio.mean,
            "policy_ratio_max": self.ratio.high,
            "sampling_logp_difference_mean": self.logp_difference.mean,
            "sampling_logp_difference_max": self.logp_difference.high,
            "importance_sampling_ratio_min": self.importance_ratio.low,
            "importance_sampling_ratio_mean": self.importance_ratio.mean,
            "importance_sampling_ratio_max": self.importance_ratio.high,
            "entropy": self.entropy.mean,
            "entropy_by_difficulty": {name: values.mean for name, values in self.entropy_by_difficulty.items()},
            **{name: count / self.tokens if self.tokens else None for name, count in counts.items()},
        }


@dataclass(frozen=True)
class TokenMetrics:
    """Values of n tokens that the loss computes; every tensor is [n].

    - `live`: whether the token counts.
    - `weighs`: whether the `importance` of the token counts: for the first token of each completion if a completion has
      one weight, else for all tokens.
    - `difference`: |old - behaviour| of log-probabilities.
    - `kl`, `entropy`: None if they were not computed.
    - `sequence`, `difficulties`: as in `Tokens`.
    """

    live: torch.Tensor
    ratio: torch.Tensor
    importance: torch.Tensor
    weighs: torch.Tensor
    difference: torch.Tensor
    clipped_low: torch.Tensor
    clipped_high: torch.Tensor
    truncated: torch.Tensor
    masked: torch.Tensor
    kl: torch.Tensor | None
    entropy: torch.Tensor | None
    sequence: torch.Tensor
    difficulties: Sequence[str]


@torch.no_grad()
def update_statistics(loss: torch.Tensor, m: TokenMetrics) -> UpdateStatistics:
    """The statistics of the tokens, with one transfer from the device."""
    nowhere = torch.zeros_like(m.live)
    names = sorted(set(m.difficulties)) if m.entropy is not None else []
    number = {name: i for i, name in enumerate(names)}
    of_difficulty = m.sequence
    if names:
        of_difficulty = torch.tensor([number[difficulty] for difficulty in m.difficulties], device=m.live.device)[
            m.sequence
        ]
    entropy, kl = (m.ratio if values is None else values for values in (m.entropy, m.kl))
    aggregates = _aggregates(
        (kl, nowhere if m.kl is None else m.live),
        (m.ratio, m.live),
        (m.importance, m.live & m.weighs),
        (m.difference, m.live & m.difference.isfinite()),
        (entropy, nowhere if m.entropy is None else m.live),
        *((entropy, m.live & (of_difficulty == i)) for i in range(len(names))),
    )
    flags = torch.stack([m.live, m.clipped_low, m.clipped_high, m.truncated, m.masked])
    counts = (m.live & flags).sum(1).double()
    value, *flat = torch.cat([loss.detach().double()[None], counts, aggregates.flatten()]).tolist()
    tokens, low, high, truncated, masked = map(int, flat[:5])
    done = [Aggregate(int(c), *rest) for c, *rest in zip(*[iter(flat[5:])] * 4, strict=True)]
    return UpdateStatistics(
        loss=value,
        tokens=tokens,
        clipped_low=low,
        clipped_high=high,
        truncated=truncated,
        masked=masked,
        kl=done[0],
        ratio=done[1],
        importance_ratio=done[2],
        logp_difference=done[3],
        entropy=done[4],
        entropy_by_difficulty={name: a for name, a in zip(names, done[5:], strict=True) if a.count},
    )


def _aggregates(*parts: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Count, sum, minimum and maximum [A x 4] in float64 of A pairs of values [n] and of which of them are live [n]."""
    values, live = (torch.stack([part.detach() for part in each]) for each in zip(*parts, strict=True))
    values = values.double()
    inf = values.new_full((len(parts), 1), math.inf)
    return torch.stack(
        [
            live.sum(1).double(),
            torch.where(live, values, 0.0).sum(1),
            torch.cat([torch.where(live, values, math.inf), inf], 1).amin(1),
            torch.cat([torch.where(live, values, -math.inf), -inf], 1).amax(1),
        ],
        1,
    )


def _merged(a: Any, b: Any) -> Any:
    if isinstance(a, Aggregate) and isinstance(b, Aggregate):
        return a.merged(b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        nothing = Aggregate()
        return {key: a.get(key, nothing).merged(b.get(key, nothing)) for key in sorted({*a, *b})}
    return a + b


def _first_nan(pick: Callable[[float, float], float], a: float, b: float) -> float:
    return a if math.isnan(a) else b if math.isnan(b) else pick(a, b)
