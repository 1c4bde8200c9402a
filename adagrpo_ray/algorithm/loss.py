"""The policy loss, as a sum over tokens with weights that hold the normalisation.

Because the weights are worked out over the whole batch beforehand, the loss is the same however the
tokens are cut into micro-batches or spread over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adagrpo_ray.types import Floats


def token_weights(lengths: Sequence[int], kind: str, max_new_tokens: int) -> list[Floats]:
    """One array of weights [T] for each completion, by the loss's normalisation.

    `grpo`: mean over each completion's tokens, then over completions (arXiv 2402.03300, eq. 3).
    `bnpo`: mean over all tokens of the batch (TRL's default, and the original's; DAPO's token-level loss,
    arXiv 2503.14476, eq. 8, for one batch).
    `dr_grpo`: sum over tokens divided by completions x max_new_tokens (arXiv 2503.20783, section 3.2).
    """
    count, total = len(lengths), sum(lengths)
    match kind:
        case "grpo":
            values = [1.0 / (count * length) for length in lengths]
        case "bnpo":
            values = [1.0 / total for _ in lengths]
        case "dr_grpo":
            values = [1.0 / (count * max_new_tokens) for _ in lengths]
        case _:
            raise ValueError(f"loss kind {kind!r} is none of grpo, bnpo, dr_grpo")
    return [np.full(length, value, np.float32) for length, value in zip(lengths, values, strict=True)]


@dataclass(frozen=True)
class LossSums:
    """The loss of some tokens and the sums behind the reported figures; all are scalars.

    `kl` and `clipped` are weighted like the loss, `gap` is the weighted |learner - behaviour| log-probability.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    clipped: torch.Tensor
    gap: torch.Tensor


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor | None,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    epsilon: float,
    beta: float,
) -> LossSums:
    """GRPO's clipped surrogate with a KL term (arXiv 2402.03300, eq. 3 and 4), summed over tokens.

    All tensors are [tokens], over any number of completions: the policy's log-probabilities with gradient,
    those before this update, those of the behaviour policy (reported only), those of the reference policy
    (None: no KL term), each token's advantage, and its weight. KL is the estimator
    exp(ref - policy) - (ref - policy) - 1 (Schulman, "Approximating KL divergence", k3).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)
    per_token = -surrogate
    kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None:
        difference = reference_logprobs - logprobs
        kl = torch.exp(difference) - difference - 1
        per_token = per_token + beta * kl
    with torch.no_grad():
        outside = ((ratio < 1 - epsilon) & (advantages < 0)) | ((ratio > 1 + epsilon) & (advantages > 0))
        gap = (old_logprobs - behaviour_logprobs).abs()
    return LossSums(
        loss=(per_token * weights).sum(),
        kl=(kl.detach() * weights).sum(),
        clipped=(outside * weights).sum(),
        gap=(gap * weights).sum(),
    )
