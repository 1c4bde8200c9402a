"""Attention by sdpa with keys and values that are repeated for all heads of the queries; for float32 on CUDA.

Without a mask, Transformers leaves keys and values as they are and asks torch for grouped queries. On CUDA only flash
kernels, which are for 16 bits, and the math kernel can group them (torch 2.13). The math kernel keeps a matrix of
[S x S] for each head. With repeated keys and values torch takes its memory-efficient kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from adagrpo_ray.model.own_attention import use_attention

NAME = "wide"
"""Name of this attention in Transformers."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention from queries [B x H x S x D], keys and values [B x K x S x D] to [B x S x H x D].

    It is an attention function for Transformers, with the options of its sdpa.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # The module itself has the number of groups, by which Transformers would repeat or group them once more.
    without_groups: Any = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    keys, values = widened((key, value), query)
    output, _ = sdpa_attention_forward(without_groups, query, keys, values, attention_mask, **options)
    return output, None


def widened(tensors: Sequence[torch.Tensor], query: torch.Tensor) -> list[torch.Tensor]:
    """Return keys and values of K heads, each repeated for the heads of the query that share it."""
    repeats = query.shape[1] // tensors[0].shape[1]
    return [tensor if repeats == 1 else tensor.repeat_interleave(repeats, 1) for tensor in tensors]


def use_wide(model: Any) -> bool:
    """Make a model use this attention. Returns False if it cannot."""
    from transformers.masking_utils import sdpa_mask

    return use_attention(model, NAME, attend, sdpa_mask)
