"""Probability ratios and sums over completions, for losses and corrections."""

from __future__ import annotations

import torch

BOUND = 20.0
"""Log-ratios are clamped to plus and minus this before `exp`, as in verl (`SAFETY_BOUND` of
verl/trainer/ppo/rollout_corr_helper.py, `compute_policy_loss_vanilla` and `kl_penalty_forward` of core_algos.py):
exp(20) is 4.9e8, far inside float32."""


def exp_ratio(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp of a log-ratio [n] clamped to +-BOUND: finite, and without gradient beyond it."""
    return log_ratio.clamp(-BOUND, BOUND).exp()


def over_sequences(values: torch.Tensor, sequence: torch.Tensor, *, mean: bool) -> torch.Tensor:
    """The sum (or mean) of `values` [n] over the completion of each token [n]."""
    count = int(sequence[-1]) + 1 if len(sequence) else 0
    sums = values.new_zeros(count).index_add(0, sequence, values)
    if mean:
        sums = sums / torch.bincount(sequence, minlength=count).clamp(min=1)
    return sums[sequence]


def firsts(sequence: torch.Tensor) -> torch.Tensor:
    """Whether each token [n] is the first of its completion."""
    return torch.cat([sequence.new_ones(min(1, len(sequence))).bool(), sequence[1:] != sequence[:-1]])
