"""The policy as a module whose forward pass returns log-probabilities of completion tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from adagrpo_ray.learner.buffers import chunk_tokens
from adagrpo_ray.learner.cuda_memory import free_bytes
from adagrpo_ray.learner.dropout import without_dropout
from adagrpo_ray.learner.head import base_of, own_head
from adagrpo_ray.learner.layout import Rows

PARTS = 8  # a chunk of logits is divided into these, and the probabilities of only one part exist at a time


class Policy(torch.nn.Module):
    """A PEFT model as a function from token ids to log-probabilities and entropies of the tokens that it wrote."""

    def __init__(
        self,
        peft_model: Any,
        max_over_ranks: Callable[[int], int] | None = None,
        *,
        entropy_gradient: bool = False,
    ) -> None:
        """Create the policy.

        `max_over_ranks` returns the maximum of its arguments over all ranks (an all-reduce MAX). ZeRO stage 3 needs it:
        each chunk of tokens gathers the head's weight from all ranks, so that all ranks must have the same number of
        chunks.
        """
        super().__init__()
        self.peft_model = peft_model
        self._max_over_ranks, self._entropy_gradient = max_over_ranks, entropy_gradient
        base_of(peft_model.get_base_model())
        self._vocabulary: int = peft_model.get_base_model().config.get_text_config().vocab_size

    def forward(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [n] of `rows.targets` and entropies [n] in nats at their positions, in float32.

        Both are those of the policy at temperature 1, without filters. Logits exist only for one chunk of tokens at a
        time, and those of several chunks are computed again in the backward pass. On a GPU the size of a chunk depends
        on the memory that is left (`chunk_tokens`). Entropies have a gradient only with `entropy_gradient`.
        """
        model = self.peft_model.get_base_model()
        output = base_of(model)[1](**rows.inputs, use_cache=False)
        chosen = output[0].flatten(0, 1)[rows.predicting]
        head = own_head(model, output)
        at_a_time = chunk_tokens(self._vocabulary, free_bytes(chosen.device))
        chunks = max(1, math.ceil(len(chosen) / at_a_time))
        if self._max_over_ranks is not None:
            chunks = self._max_over_ranks(chunks)
        # A single chunk would be computed again right away.
        metrics = _token_metrics if chunks == 1 else partial(checkpoint, _token_metrics, use_reentrant=False)
        parts = [
            metrics(head, h, t, self._entropy_gradient)
            for h, t in zip(chosen.tensor_split(chunks), rows.targets.tensor_split(chunks), strict=True)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters, by their names in PEFT's files."""
        named = self.peft_model.named_parameters()
        return {name.replace(".default.", "."): p for name, p in named if p.requires_grad}

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Make the model the reference policy within the block: adapter off, no gradients, no dropout."""
        with torch.no_grad(), without_dropout(self), self.peft_model.disable_adapter():
            yield


def _token_metrics(
    head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor, entropy_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of each token [n] from hidden states [n x H]."""
    logits = head(hidden).float()
    logsumexp = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - logsumexp
    # Last, so that the backward pass does not compute it again if it has no gradient.
    entropy: Callable[[torch.Tensor], torch.Tensor] = _Entropy.apply
    return logprobs, entropy(logits if entropy_gradient else logits.detach())


class _Entropy(torch.autograd.Function):
    """Entropy [n] of softmax(logits [n x V]), computed by parts of the rows to save memory."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        """Return -sum of p log p."""
        entropies = torch.cat([-torch.linalg.vecdot(p.exp(), p) for p in _log_softmax(logits)])
        ctx.save_for_backward(logits, entropies)
        return entropies

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Return the gradient by each logit: -p (log p + entropy), times the gradient of the entropy."""
        logits, entropies = ctx.saved_tensors
        result = torch.empty_like(logits)
        rows = zip(*(t.tensor_split(PARTS) for t in (result, entropies, *gradients)), strict=True)
        for p, (part, entropy, gradient) in zip(_log_softmax(logits), rows, strict=True):
            torch.mul(p.exp(), (p + entropy[:, None]).mul_(-gradient[:, None]), out=part)
        return result


def _log_softmax(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """log p by parts of the rows; impossible tokens have the lowest number, not -inf, so that p log p is 0."""
    lowest = torch.finfo(logits.dtype).min
    return (part.log_softmax(-1).clamp_(min=lowest) for part in logits.tensor_split(PARTS))
