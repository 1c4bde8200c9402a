"""Rollout correction: importance weights from the sampling distribution to the policy before the update."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adagrpo_ray.algorithm.ratios import exp_ratio, over_sequences
from adagrpo_ray.config.algorithm import LossSettings


@dataclass(frozen=True)
class Correction:
    """Importance weights of tokens.

    - `weights` [n]: without gradient.
    - `truncated` [n]: whether the weight of a token was truncated to a bound.
    - `masked` [n]: whether a token was masked.
    - `by_completion`: whether all tokens of a completion have the same weight.
    """

    weights: torch.Tensor
    truncated: torch.Tensor
    masked: torch.Tensor
    by_completion: bool = False


@torch.no_grad()
def rollout_correction(
    old: torch.Tensor, behaviour: torch.Tensor, sequence: torch.Tensor, settings: LossSettings
) -> Correction:
    """The correction of tokens from their log-probabilities [n] before the update (`old`) and when they were drawn.

    `settings.correction` selects r: the ratio old / behaviour of a token, its product over the completion, or its
    geometric mean. `correction_floor` and `correction_cap` are the bounds.

    - `truncate`: r clamped to the bounds. By token: TIS of OpenRLHF (`PolicyLoss`, "tis") and verl
      (`compute_rollout_correction_weights`), TRL's `token_truncate`. By sequence: verl's "sequence", TRL's
      `sequence_truncate`. Geometric: that of verl 0.6 (`rollout_is_level: geometric`).
    - `mask`: r if it is within the bounds, else 0. By token: IcePop (OpenRLHF's "icepop"), TRL's `token_mask`. By
      sequence: TRL's default, `sequence_mask`. Geometric: the mean only decides which completions are kept; their
      tokens have their own weights, without bounds. This is OpenRLHF's "seq-mask-tis".

    Masked tokens still count in the normalisation of the loss, as in TRL and OpenRLHF; verl's rejection sampling
    removes them from it. The KL term is not masked. A token of unknown probability (NaN) has weight 1, as in TRL.
    """
    log_ratio = torch.where(behaviour.isnan(), 0.0, old - behaviour)
    none = torch.zeros_like(log_ratio, dtype=torch.bool)
    if settings.correction == "none":
        return Correction(torch.ones_like(log_ratio), none, none)
    by_token, whole = log_ratio, settings.correction != "token"
    if whole:
        log_ratio = over_sequences(log_ratio, sequence, mean=settings.correction == "geometric")
    ratio = exp_ratio(log_ratio)
    low, high = settings.correction_floor, settings.correction_cap
    outside = none
    if low is not None:
        outside = outside | (ratio < low)
    if high is not None:
        outside = outside | (ratio > high)
    if settings.correction_mode == "truncate":
        clamped = ratio if low is None and high is None else ratio.clamp(low, high)
        return Correction(clamped, outside, none, whole)
    geometric = settings.correction == "geometric"
    weights = torch.where(outside, 0.0, exp_ratio(by_token) if geometric else ratio)
    return Correction(weights, none, outside, whole and not geometric)
