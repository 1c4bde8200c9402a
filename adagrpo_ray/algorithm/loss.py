"""The policy loss, as a sum over tokens with weights that hold the normalisation.

Because the weights are worked out over the whole batch beforehand, the loss is the same however
completions are cut into micro-batches or spread over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adagrpo_ray.config.algorithm import LossSettings
from adagrpo_ray.types import Floats


def token_weights(lengths: Sequence[int], kind: str, max_new_tokens: int) -> list[Floats]:
    """One array of weights [T] for each completion, by the loss's normalisation.

    `grpo`, `gspo`: mean over each completion's tokens, then over completions (arXiv 2402.03300, eq. 3;
    arXiv 2507.18071, eq. 5). `bnpo` (TRL's name, and what the original used), `dapo`, `cispo`: mean over all
    tokens of the batch (arXiv 2503.14476, eq. 8; arXiv 2506.13585, eq. 4).
    `dr_grpo`: sum over tokens divided by completions x max_new_tokens (arXiv 2503.20783, section 3.2).
    """
    count, total = len(lengths), sum(lengths)
    match kind:
        case "grpo" | "gspo":
            values = [1.0 / (count * length) for length in lengths]
        case "bnpo" | "dapo" | "cispo":
            values = [1.0 / total for _ in lengths]
        case "dr_grpo":
            values = [1.0 / (count * max_new_tokens) for _ in lengths]
        case _:
            raise ValueError(f"loss kind {kind!r} is none of grpo, gspo, bnpo, dapo, cispo, dr_grpo")
    return [np.full(length, value, np.float32) for length, value in zip(lengths, values, strict=True)]


@dataclass(frozen=True)
class Tokens:
    """The tokens of whole completions, one after the other; every tensor is [n].

    Log-probabilities: `policy` with gradient, `old` before this update, `behaviour` of the distribution that
    the token was drawn from, `reference` of the model without its adapter (None: no KL term). `sequence` says
    which completion a token belongs to, from 0.
    """

    policy: torch.Tensor
    old: torch.Tensor
    behaviour: torch.Tensor
    reference: torch.Tensor | None
    advantages: torch.Tensor
    weights: torch.Tensor
    sequence: torch.Tensor


@dataclass(frozen=True)
class LossSums:
    """The loss of some tokens and the sums behind the reported figures; all are scalars weighted like the loss.

    `kl` to the reference policy; `clipped` tokens whose ratio stopped counting; `gap` is |old - behaviour|
    log-probability; `correction` the importance weight, `capped` the tokens whose weight met its cap; `weight`
    is what to divide these by for a mean.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    clipped: torch.Tensor
    gap: torch.Tensor
    correction: torch.Tensor
    capped: torch.Tensor
    weight: torch.Tensor


def policy_loss(tokens: Tokens, settings: LossSettings) -> LossSums:
    """The loss of these tokens, summed with their weights.

    Surrogates, with r the ratio policy / old and A the advantage:
    - clipped, all kinds but the two below: min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) (arXiv 2402.03300,
      eq. 3; with its own upper bound: DAPO's clip-higher, arXiv 2503.14476, eq. 10);
    - `gspo`: the same with the sequence's ratio, the geometric mean of its tokens' (arXiv 2507.18071, eq. 7);
    - `cispo`: sg(min(r, 1 + epsilon_high)) A log policy, so that no token loses its gradient (arXiv 2506.13585,
      eq. 4 and 5).
    Each is multiplied by the truncated importance weight of `correction_weights`; the KL term is not.
    """
    t, low = tokens, 1 - settings.epsilon
    high = 1 + (settings.epsilon if settings.epsilon_high is None else settings.epsilon_high)
    log_ratio = t.policy - t.old
    if settings.kind == "gspo":
        log_ratio = _over_sequences(log_ratio, t.sequence, mean=True)
    ratio = torch.exp(log_ratio)
    correction, capped = correction_weights(t, settings)
    if settings.kind == "cispo":
        surrogate = ratio.detach().clamp(max=high) * t.advantages * t.policy
        outside = ratio > high
    else:
        surrogate = torch.minimum(ratio * t.advantages, ratio.clamp(low, high) * t.advantages)
        outside = ((ratio < low) & (t.advantages < 0)) | ((ratio > high) & (t.advantages > 0))
    per_token = -correction * surrogate
    kl = torch.zeros_like(t.policy)
    if t.reference is not None:
        kl = kl_estimate(t.policy, t.reference, settings.kl)
        per_token = per_token + settings.beta * kl
    weights = t.weights
    return LossSums(
        loss=(per_token * weights).sum(),
        kl=(kl.detach() * weights).sum(),
        clipped=(outside * weights).sum(),
        gap=((t.old - t.behaviour).abs() * weights).sum(),
        correction=(correction * weights).sum(),
        capped=(capped * weights).sum(),
        weight=weights.sum(),
    )


def correction_weights(tokens: Tokens, settings: LossSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Truncated importance weights [n] from behaviour to old policy, and which met the cap [n]; no gradient.

    `token`: min(old / behaviour, cap) for each token; `sequence`: the same of a completion's product of ratios,
    unbiased where it is not capped (Ionides, "Truncated importance sampling", 2008). Where tokens were drawn at
    another temperature, through filters, or by an older version, this makes up for it.
    """
    with torch.no_grad():
        log_ratio = tokens.old - tokens.behaviour
        if settings.correction == "none":
            return torch.ones_like(log_ratio), torch.zeros_like(log_ratio)
        if settings.correction == "sequence":
            log_ratio = _over_sequences(log_ratio, tokens.sequence, mean=False)
        weights = torch.exp(log_ratio)
        return weights.clamp(max=settings.correction_cap), (weights > settings.correction_cap).to(weights.dtype)


def kl_estimate(policy: torch.Tensor, reference: torch.Tensor, kind: str) -> torch.Tensor:
    """Each token's estimate [n] of KL(policy || reference), with d = policy - reference log-probability.

    `k1`: d, unbiased and of large variance; `k2`: d^2 / 2, biased, whose gradient is that of the KL on policy;
    `k3`: exp(-d) + d - 1, unbiased and never negative (Schulman, "Approximating KL divergence", 2020).
    """
    difference = policy - reference
    match kind:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            return torch.exp(-difference) + difference - 1
    raise ValueError(f"KL estimator {kind!r} is none of k1, k2, k3")


def _over_sequences(values: torch.Tensor, sequence: torch.Tensor, *, mean: bool) -> torch.Tensor:
    """Each token's value replaced by the sum (or mean) over its completion; [n]."""
    count = int(sequence[-1]) + 1 if len(sequence) else 0
    sums = values.new_zeros(count).index_add(0, sequence, values)
    if mean:
        sums = sums / torch.bincount(sequence, minlength=count)
    return sums[sequence]
