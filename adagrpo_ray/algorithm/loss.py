"""The policy loss, as a sum over tokens with weights that contain the normalisation.

The weights are computed over the whole batch beforehand. So the loss does not depend on how completions are divided
into micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adagrpo_ray.algorithm.correction import rollout_correction
from adagrpo_ray.algorithm.ratios import BOUND, exp_ratio, firsts, over_sequences
from adagrpo_ray.algorithm.update_statistics import TokenMetrics, UpdateStatistics, update_statistics
from adagrpo_ray.config.algorithm import LossSettings
from adagrpo_ray.types import Floats

LARGEST_K3 = 10.0
"""Bound of the estimator k3, as in verl (`kl_penalty_forward` of verl/trainer/ppo/core_algos.py)."""


def token_weights(
    lengths: Sequence[int], kind: str, max_new_tokens: int, masked: Sequence[bool] | None = None
) -> list[Floats]:
    """One array of weights [P] for each completion, by the normalisation `kind`; zeros for `masked` completions.

    `lengths` are the numbers of tokens that the policy wrote, P; observed tokens of an episode do not count.

    - `grpo`, `gspo`: mean over the tokens of each completion, then over completions (arXiv 2402.03300, eq. 3;
      arXiv 2507.18071, eq. 5).
    - `bnpo` (TRL's name; the original code uses it), `dapo`, `cispo`: mean over all tokens of the batch
      (arXiv 2503.14476, eq. 8; arXiv 2506.13585, eq. 4).
    - `dr_grpo`: sum over tokens divided by completions x max_new_tokens (arXiv 2503.20783, section 3.2).

    As in TRL (`_compute_loss` of grpo_trainer.py), a mean over tokens excludes masked completions, and a number of
    completions includes them. Empty completions count as completions without tokens.
    """
    masked = [False] * len(lengths) if masked is None else masked
    count = len(lengths)
    total = sum(length for length, out in zip(lengths, masked, strict=True) if not out)
    match kind:
        case "grpo" | "gspo":
            values = [1.0 / (count * max(1, length)) for length in lengths]
        case "bnpo" | "dapo" | "cispo":
            values = [1.0 / max(1, total) for _ in lengths]
        case "dr_grpo":
            values = [1.0 / (count * max_new_tokens) for _ in lengths]
        case _:
            raise ValueError(f"loss kind {kind!r} is none of grpo, gspo, bnpo, dapo, cispo, dr_grpo")
    return [
        np.full(length, 0.0 if out else value, np.float32)
        for length, value, out in zip(lengths, values, masked, strict=True)
    ]


@dataclass(frozen=True)
class Tokens:
    """The tokens that the policy wrote in whole completions, one after the other; every tensor is [n].

    Observed tokens are not among them. So ratios of sequences and weights of the rollout correction are over the tokens
    of the policy alone.

    - `policy`: log-probabilities, with gradient.
    - `old`: log-probabilities before the first update on the batch.
    - `behaviour`: log-probabilities under the distribution that the tokens were drawn from.
    - `reference`: log-probabilities of the model without its adapter; None for no KL term.
    - `advantages`, `weights`: see `TrainSample`.
    - `sequence`: the index of the completion of each token, from 0.
    - `entropy`: entropy of the policy in nats; None if it is not computed, which excludes a bonus.
    - `difficulties`: the difficulty class of each completion.
    """

    policy: torch.Tensor
    old: torch.Tensor
    behaviour: torch.Tensor
    reference: torch.Tensor | None
    advantages: torch.Tensor
    weights: torch.Tensor
    sequence: torch.Tensor
    entropy: torch.Tensor | None = None
    difficulties: Sequence[str] = ()


def policy_loss(tokens: Tokens, settings: LossSettings) -> tuple[torch.Tensor, UpdateStatistics]:
    """The loss of the tokens, summed with their weights, and the statistics of tokens of weight above 0.

    Surrogates, with r the ratio policy / old and A the advantage:

    - clipped, all kinds but the two below: min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) (arXiv 2402.03300,
      eq. 3; with its own upper bound: DAPO's clip-higher, arXiv 2503.14476, eq. 10);
    - `gspo`: the clipped surrogate with the ratio of the sequence, which is the geometric mean of its tokens' ratios
      (arXiv 2507.18071, eq. 7), in the form that gives each token its own gradient (GSPO-token, section 4.3);
    - `cispo`: sg(min(r, 1 + epsilon_high)) A log policy, so that no token loses its gradient (arXiv 2506.13585,
      eq. 4 and 5).

    The surrogate of each token is multiplied by its weight of `rollout_correction`; the KL term is not. So with `gspo`
    and a correction by token, each token's gradient has its own weight, as in verl (`compute_policy_loss_gspo` of
    verl/trainer/ppo/core_algos.py); TRL gives all tokens of a completion the mean of their weights. `entropy_coef`
    times the entropy is subtracted, with the weights of the loss, as in verl (`entropy_coeff`). Log-ratios are clamped
    before each `exp` (`exp_ratio`).
    """
    t, low = tokens, 1 - settings.epsilon
    high = 1 + (settings.epsilon if settings.epsilon_high is None else settings.epsilon_high)
    log_ratio = t.policy - t.old
    if settings.kind == "gspo":
        log_ratio = over_sequences(log_ratio.detach(), t.sequence, mean=True) + (t.policy - t.policy.detach())
    ratio = exp_ratio(log_ratio)
    correction = rollout_correction(t.old, t.behaviour, t.sequence, settings)
    above = ratio > high
    if settings.kind == "cispo":
        surrogate = ratio.detach().clamp(max=high) * t.advantages * t.policy
        clipped_low, clipped_high = torch.zeros_like(above), above
    else:
        surrogate = torch.minimum(ratio * t.advantages, ratio.clamp(low, high) * t.advantages)
        clipped_low, clipped_high = (ratio < low) & (t.advantages < 0), above & (t.advantages > 0)
    per_token = -correction.weights * surrogate
    kl = None
    if t.reference is not None:
        kl = kl_estimate(t.policy, t.reference, settings.kl)
        per_token = per_token + settings.beta * kl
    if t.entropy is not None and settings.entropy_coef:
        per_token = per_token - settings.entropy_coef * t.entropy
    loss = (per_token * t.weights).sum()
    metrics = TokenMetrics(
        live=t.weights > 0,
        ratio=ratio,
        importance=correction.weights,
        weighs=firsts(t.sequence) if correction.by_completion else torch.ones_like(above),
        difference=(t.old - t.behaviour).abs(),
        clipped_low=clipped_low,
        clipped_high=clipped_high,
        truncated=correction.truncated,
        masked=correction.masked,
        kl=kl,
        entropy=t.entropy,
        sequence=t.sequence,
        difficulties=t.difficulties,
    )
    return loss, update_statistics(loss, metrics)


def kl_estimate(policy: torch.Tensor, reference: torch.Tensor, kind: str) -> torch.Tensor:
    """Estimate [n] of KL(policy || reference) for each token, from d = policy - reference log-probability.

    - `k1`: d, unbiased, with large variance.
    - `k2`: d^2 / 2, biased; on policy its gradient is that of the KL.
    - `k3`: exp(-d) + d - 1, unbiased and never negative (Schulman, "Approximating KL divergence", 2020). d is clamped
      to +-20 and the estimate to 10, as in verl (`low_var_kl` in `kl_penalty_forward` of core_algos.py).
    """
    difference = policy - reference
    match kind:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            bounded = difference.clamp(-BOUND, BOUND)
            return (exp_ratio(-bounded) + bounded - 1).clamp(max=LARGEST_K3)
    raise ValueError(f"KL estimator {kind!r} is none of k1, k2, k3")
