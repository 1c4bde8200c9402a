"""The memory of one decoder layer in the backward pass of an update, for the memory estimate; without torch.

The formulas list the tensors that autograd saves, in Qwen3's layers with PEFT's LoRA and frozen base weights. `size` is
the number of bytes of one number of the model's type.
"""

from __future__ import annotations

from dataclasses import dataclass

from adagrpo_ray.model.shape import Shape


@dataclass(frozen=True)
class MicroBatch:
    """The sizes of a micro-batch in the input of the model.

    - `tokens`: of the input, padding included.
    - `pairs`: of tokens, in the masks of attention; each has one byte.
    - `copied`: tokens of the copies of prompts for blocks of completions (`model/shared_attention.py`).
    - `padding`: tokens by which such blocks pad completions.
    """

    tokens: int
    pairs: int = 0
    copied: int = 0
    padding: int = 0


def layer_bytes(
    shape: Shape,
    size: int,
    *,
    dropped: tuple[str, ...] = (),
    divided: bool = False,
    repeated: bool = False,
    liger: bool = False,
) -> int:
    """Bytes a token that one layer keeps for its backward pass; `dropped` are the targets with LoRA dropout.

    - LoRA: A needs its input. Projections of one input share it, unless each has its own dropout, which keeps a mask of
      one byte a value. Without dropout, the input of `o_proj` is the output of attention. If weights are `divided`
      (ZeRO stage 3), DeepSpeed's linear layers keep their inputs, too, which without dropout are the same.
    - Attention: query, key, value and output; key and value may be `repeated` for all heads.
    - MLP: gate, its activation, and up. Liger's kernel computes the activation again.
    - Norms: the hidden states, queries and keys that are their inputs, in float32. Liger's kernel keeps hidden states
      in the type of the model; it does not replace the norms of queries and keys.
    """
    h, m = shape.hidden, shape.intermediate
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inputs = sum(shape.linear[name][0] for name in dropped) * (size + 1)
    inputs += (2 * h + m) * size if divided or not dropped else 0
    attention = (2 * q + 2 * (q if repeated else kv)) * size
    mlp = (2 if liger else 3) * m * size
    norms = 2 * h * (size if liger else 4) + (q + kv) * 4
    return inputs + attention + mlp + norms


def transient_bytes(shape: Shape, size: int, *, dropped: bool) -> int:
    """Bytes a token that exist for a short time on top of `layer_bytes`, at the worst moment of a layer.

    With dropout that is the end of its forward pass: the residual, the input and the output of the MLP, and the input
    of its last projection before dropout. Without dropout it is the beginning of its backward pass: the gradient by
    that input through the base weights, and its sum with that through LoRA, when one hidden state is free already.
    """
    h, m = shape.hidden, shape.intermediate
    return (3 * h + m) * size if dropped else max(2 * h, 2 * m - h) * size


def shared_bytes(shape: Shape, size: int, batch: MicroBatch) -> int:
    """Additional bytes that attention keeps in one layer if prompts are shared, with repeated keys and values.

    Queries and outputs are kept twice: of the row, and of its blocks. Keys and values are kept for each copy of a
    prompt, too, and query, key, value and output for the padding.
    """
    return (2 * batch.tokens + 2 * batch.copied + 4 * batch.padding) * shape.heads * shape.head_dim * size
