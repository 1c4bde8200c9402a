"""The tokens of a micro-batch, with all inputs of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from adagrpo_ray.algorithm.loss import Tokens
from adagrpo_ray.types import TrainSample


def loss_tokens(
    samples: Sequence[TrainSample],
    policy: torch.Tensor,
    old: torch.Tensor,
    reference: torch.Tensor | None,
    entropy: torch.Tensor,
) -> Tokens:
    """The tokens that the policy wrote, sample by sample; all arguments but `samples` have one value a token.

    Observed tokens are not among them, so the loss and its statistics do not depend on them.
    """

    def flat(arrays: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(policy.device)

    return Tokens(
        policy=policy,
        old=old,
        behaviour=flat([s.written(s.behaviour_logprobs) for s in samples]),
        reference=reference,
        advantages=flat([np.full(s.policy_tokens, s.advantage, np.float32) for s in samples]),
        weights=flat([s.written(s.token_weights) for s in samples]),
        sequence=flat([np.full(s.policy_tokens, i) for i, s in enumerate(samples)]),
        entropy=entropy,
        difficulties=[s.difficulty for s in samples],
    )
