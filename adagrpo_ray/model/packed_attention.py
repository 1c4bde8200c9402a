"""Attention in a row of several samples by torch's own flash kernel for sequences of different lengths.

It needs no mask of [S x S] and no additional package. It runs on CUDA devices, in 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch

from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.own_attention import use_attention

NAME = "torch_varlen"
"""Name of this attention in Transformers."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention from queries [B x H x S x D], keys and values [B x K x S x D] to [B x S x H x D].

    It is an attention function for Transformers. `cu_seq_lens_q` [N + 1] are the places in the one row at which N
    samples begin, and its end; `max_length_q` is the length of the longest. Without them, each row is a sample.

    Raises ModelError if the model uses an option that the kernel does not have.
    """
    from torch.nn.attention import varlen

    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ModelError(f"torch's flash kernel has no attention with {name}")
    if attention_mask is not None or dropout > 0.0:
        raise ModelError("torch's flash kernel has no attention with a mask or with dropout")
    rows, _, tokens, _ = query.shape
    if cu_seq_lens_q is None:
        bounds, longest = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32, device=query.device), tokens
    else:
        bounds, longest = cu_seq_lens_q, max_length_q or tokens
    # Transformers counts the token itself, the kernel only those before it; (-1, 0) is causal attention without limit.
    before = -1 if sliding_window is None or sliding_window >= longest else sliding_window - 1
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    output = varlen.varlen_attn(
        q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=(before, 0), enable_gqa=True
    )
    assert isinstance(output, torch.Tensor)  # a pair only if more is asked for
    return output.view(rows, tokens, *output.shape[1:]), None


def kernel_runs(heads: int, kv_heads: int, size: int) -> bool:
    """Whether the kernel computes attention and its gradient on this machine, for heads of `size` numbers.

    It is tried, since that depends on the GPU, the build of torch and the size.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        query, key, value = (
            torch.zeros(1, number, 4, size, dtype=torch.bfloat16, device=device, requires_grad=True)
            for number in (heads, kv_heads, kv_heads)
        )
        output, _ = attend(torch.nn.Module(), query, key, value, None, scaling=1.0)
        torch.autograd.grad(output.sum(), (query, key, value))
    except Exception:  # torch raises many errors for kernels that it does not have
        return False
    return True


def use_varlen(model: Any) -> bool:
    """Make a model use this attention. Returns False if it cannot, or the kernel does not run on this machine."""
    # Models that Transformers runs with flash-attn have no other masks than those of their sliding window.
    if not (model._supports_flash_attn and getattr(model, "_supports_attention_backend", False)):
        return False
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if not kernel_runs(heads, kv_heads, getattr(text, "head_dim", None) or text.hidden_size // heads):
        return False
    from transformers.masking_utils import flash_attention_mask

    return use_attention(model, NAME, attend, flash_attention_mask)
