"""Attention in a row with each prompt once, followed by all of its completions.

A completion attends to its prompt and to itself. Keys and values of a prompt are computed once. This is exact, since
attention is causal: no token of a prompt depends on a completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from adagrpo_ray.errors import ModelError
from adagrpo_ray.model import wide_attention
from adagrpo_ray.model.own_attention import use_attention

NAME = "shared_prompt"
"""Name of this attention in Transformers."""


@dataclass(frozen=True)
class Blocks:
    """Completions of one prompt, of similar lengths, in B blocks of C completions, each padded to L tokens.

    `tokens` [B x CL] are indices into the row; padding has the index of some token of it.
    `kept` are the indices of the flattened [B x CL] tokens that are no padding, in their order in the row.
    `positions` [P + CL] are the positions in their sequences of the tokens of the prompt and of a block.
    `mask` [CL x (P + CL)] is true if a token of a block sees a token of the prompt or the block: all of the prompt, and
    itself and the earlier ones of its own completion.
    """

    tokens: torch.Tensor
    kept: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class SharedPrompt:
    """A prompt of P tokens, at `prompt` in the row, and the completions that follow it."""

    prompt: slice
    completions: tuple[Blocks, ...]


def shared_prompt(start: int, prompt: int, lengths: Sequence[int], device: torch.device) -> SharedPrompt:
    """Return the group with a prompt of `prompt` tokens at `start` in a row, and completions of these `lengths`.

    The keys and values of the prompt are copied for each block of completions. If the lengths are sorted, the copies
    have at most P + 6 S tokens in all, where P is the length of the prompt and S the sum of the lengths.
    """
    place, blocks = start + prompt, []
    for like in _alike(lengths, prompt):
        blocks.append(_blocks(place, start, prompt, like, device))
        place += sum(like)
    return SharedPrompt(slice(start, start + prompt), tuple(blocks))


def _alike(lengths: Sequence[int], prompt: int) -> Iterator[list[int]]:
    """Yield the lengths in their order, split before one that would need more padding than another copy of the prompt.

    Lengths of which none is more than twice another stay together.
    """
    like: list[int] = []
    for length in lengths:
        longer = [*like, length]
        padding = max(longer) * len(longer) - sum(longer)
        if like and max(longer) > 2 * min(longer) and padding > prompt:
            yield like
            longer = [length]
        like = longer
    yield like


def _blocks(place: int, start: int, prompt: int, lengths: Sequence[int], device: torch.device) -> Blocks:
    """Return the blocks of completions of `lengths` that are in the row from `place` on, of the prompt at `start`.

    A block has as many completions as have together half of the prompt's tokens. So little of its attention is masked
    out, and the copies of the prompt have at most twice as many tokens as the completions, or there is only one copy.
    """
    longest = max(1, *lengths)
    size = min(len(lengths), max(1, -(-prompt // (2 * longest))))
    blocks = -(-len(lengths) // size)
    places, count = torch.arange(longest), torch.tensor(lengths)[:, None]
    first = place + count.cumsum(0) - count
    tokens = torch.full((blocks * size, longest), start)
    tokens[: len(lengths)] = torch.where(places < count, first + places, start)
    owner, own = torch.arange(size).repeat_interleave(longest), places.repeat(size)
    seen = (owner[:, None] == owner) & (own[:, None] >= own)
    return Blocks(
        tokens=tokens.view(blocks, size * longest).to(device),
        kept=(places < count).flatten().nonzero()[:, 0].to(device),
        positions=torch.cat([torch.arange(prompt), prompt + own]).to(device),
        mask=torch.cat([torch.ones(len(own), prompt, dtype=torch.bool), seen], 1).to(device),
    )


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    shared: Sequence[SharedPrompt] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention from queries [1 x H x S x D], keys and values [1 x K x S x D] to [1 x S x H x D].

    It is an attention function for Transformers. `shared` are the groups of the row, one after the other; without them
    this is sdpa. Raises ModelError if the model uses an option that this attention does not have.
    """
    if shared is None:
        return wide_attention.attend(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ModelError(f"attention with {name} does not share prompts")

    def attention(mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, dropout_p=dropout
        )

    parts: list[torch.Tensor] = []
    for group in shared:
        q, *prompt = (tensor[:, :, group.prompt] for tensor in (query, key, value))
        mask = _window(q.shape[2], sliding_window, q.device)
        output = attention(mask, q, *wide_attention.widened(prompt, q))
        parts.append(output[0].transpose(0, 1))
        for blocks in group.completions:
            q, *own = (tensor[0][:, blocks.tokens].transpose(0, 1) for tensor in (query, key, value))
            both = [torch.cat([p.expand(len(o), -1, -1, -1), o], 2) for p, o in zip(prompt, own, strict=True)]
            mask = _seen(blocks, sliding_window)
            output = attention(mask, q, *wide_attention.widened(both, q))
            parts.append(output.transpose(1, 2).flatten(0, 1)[blocks.kept])
    return torch.cat(parts)[None], None


def _window(tokens: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return the mask [tokens x tokens] of causal attention with a sliding window; None if all tokens are within it."""
    if window is None or tokens <= window:
        return None
    places = torch.arange(tokens, device=device)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < window)


def _seen(blocks: Blocks, window: int | None) -> torch.Tensor:
    """Return the mask of a block [CL x (P + CL)], with a sliding window if there is one."""
    if window is None:
        return blocks.mask
    own = blocks.positions[-len(blocks.mask) :]
    return blocks.mask & (own[:, None] - blocks.positions < window)


def share_prompts(model: Any) -> bool:
    """Make a model use this attention.

    Returns False if it cannot: its layers have a state, their own attention, or attention within chunks (Llama 4). Only
    a mask of Transformers expresses chunks.
    """
    chunks = getattr(model.config.get_text_config(), "attention_chunk_size", None)
    if model._is_stateful or chunks:
        return False
    from transformers.masking_utils import sdpa_mask

    return use_attention(model, NAME, attend, sdpa_mask)
