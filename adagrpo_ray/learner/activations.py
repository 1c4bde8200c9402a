"""The memory of one decoder layer in the backward pass of an update, for the memory estimate; without torch.

The formulas list the tensors that autograd saves, in Qwen3's layers with PEFT's LoRA and frozen base weights. All
results are bytes a token; `size` is the number of bytes of one number of the model's type.
"""

from __future__ import annotations

from adagrpo_ray.model.shape import Shape


def layer_bytes(
    shape: Shape, size: int, *, dropped: tuple[str, ...] = (), masked: bool = False, liger: bool = False
) -> int:
    """Bytes that one layer keeps for its backward pass; `dropped` are the targets with LoRA dropout.

    - LoRA: A needs its input. Projections of one input share it, unless each has its own dropout, which keeps a mask of
      one byte a value. Without dropout, the input of `o_proj` is the output of attention.
    - Attention: query, key, value and output. If there is a mask, key and value are repeated for all heads.
    - MLP: gate, its activation, and up. Liger's kernel computes the activation again.
    - Norms: the hidden states, queries and keys that are their inputs, in float32. Liger's kernel keeps hidden states
      in the type of the model; it does not replace the norms of queries and keys.
    """
    h, m = shape.hidden, shape.intermediate
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inputs = sum(shape.linear[name][0] for name in dropped) * (size + 1) if dropped else (2 * h + m) * size
    attention = (2 * q + 2 * (q if masked else kv)) * size
    mlp = (2 if liger else 3) * m * size
    norms = 2 * h * (size if liger else 4) + (q + kv) * 4
    return inputs + attention + mlp + norms


def transient_bytes(shape: Shape, size: int, *, dropped: bool) -> int:
    """Bytes that exist for a short time on top of `layer_bytes`, at the worst moment of a layer.

    With dropout that is the end of its forward pass: the residual, the input and the output of the MLP, and the input
    of its last projection before dropout. Without dropout it is the beginning of its backward pass: the gradient by
    that input through the base weights, and its sum with that through LoRA, when one hidden state is free already.
    """
    h, m = shape.hidden, shape.intermediate
    return (3 * h + m) * size if dropped else max(2 * h, 2 * m - h) * size


def shared_bytes(shape: Shape, size: int) -> int:
    """Additional bytes that attention keeps in one layer if prompts are shared (`model/shared_attention.py`).

    Queries are kept twice. Keys and values of prompts are kept for twice as many tokens as the completions have. Query,
    key, value and output of a completion are padded to twice its length. If lengths differ more than that, the bytes
    may be more.
    """
    return (1 + 2 * 2 + 4) * shape.heads * shape.head_dim * size
