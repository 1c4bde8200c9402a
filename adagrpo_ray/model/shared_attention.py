"""Attention in a row with each prompt once, followed by all of its completions.

A completion attends to its prompt and to itself. Keys and values of a prompt are computed once. This is exact, since
attention is causal: no token of a prompt depends on a completion.

A long group is computed in blocks, in which little is masked out. Short groups are computed together, under one mask:
starting some forty operations for each of them would take longer.
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

TOGETHER = 160
"""Most tokens of the groups that are computed together.

With it an update of the tiny model on four groups, 150 tokens, takes 32 ms in place of 42 on two cores. One of
SmolLM2 on 16 groups of 100 to 160 tokens took 7.5 s in place of 8.9, with the other changes of b130906. No other
value was measured.
"""


@dataclass(frozen=True)
class Blocks:
    """Completions of one prompt, of similar lengths, in B blocks of C completions, each padded to L tokens.

    `tokens` [B x CL] are indices into the group; padding has the index of some token of it.
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
    """A group of `tokens` tokens: a prompt of P tokens, and the completions that follow it."""

    tokens: int
    prompt: int
    completions: tuple[Blocks, ...]


@dataclass(frozen=True)
class Together:
    """Short groups of T tokens in all.

    `positions` [T] are those of the tokens in their sequences. `mask` [T x T] is true if a token sees another: all of
    its prompt, if it is of a completion, and itself and the earlier ones of its own prompt or completion.
    """

    positions: torch.Tensor
    mask: torch.Tensor

    @property
    def tokens(self) -> int:
        """Their number, T."""
        return len(self.mask)


Group = tuple[int, Sequence[int]]
"""The tokens of a prompt, and those of each of its completions."""


def parts_of_row(groups: Sequence[Group], device: torch.device) -> tuple[SharedPrompt | Together, ...]:
    """Return the parts of a row with these groups: neighbours that have at most TOGETHER tokens in all are one part."""
    short: list[Group] = []
    parts: list[SharedPrompt | Together] = []
    for group in groups:
        if short and sum(map(_tokens, [*short, group])) > TOGETHER:
            parts.append(together(short, device))
            short = []
        if _tokens(group) > TOGETHER:
            parts.append(shared_prompt(*group, device))
        else:
            short.append(group)
    return (*parts, together(short, device)) if short else tuple(parts)


def together(groups: Sequence[Group], device: torch.device) -> Together:
    """Return the groups as one part of a row."""
    owners, pieces, places = list[int](), list[int](), list[torch.Tensor]()
    for number, (prompt, lengths) in enumerate(groups):
        for piece, length in enumerate((prompt, *lengths)):  # the prompt is piece 0
            owners += [number] * length
            pieces += [piece] * length
            places.append(torch.arange(length) + (prompt if piece else 0))
    owner, own, place = torch.tensor(owners), torch.tensor(pieces), torch.cat(places)
    seen = (owner[:, None] == owner) & ((own[:, None] == own) | (own == 0)) & (place[:, None] >= place)
    return Together(place.to(device), seen.to(device))


def _tokens(group: Group) -> int:
    return group[0] + sum(group[1])


def shared_prompt(prompt: int, lengths: Sequence[int], device: torch.device) -> SharedPrompt:
    """Return the group with a prompt of `prompt` tokens and completions of these `lengths`.

    The keys and values of the prompt are copied for each block of completions. If the lengths are sorted, the copies
    have at most P + 6 S tokens in all, where P is the length of the prompt and S the sum of the lengths.
    """
    place, blocks = prompt, []
    for like in _alike(lengths, prompt):
        blocks.append(_blocks(place, prompt, like, device))
        place += sum(like)
    return SharedPrompt(place, prompt, tuple(blocks))


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


def _blocks(place: int, prompt: int, lengths: Sequence[int], device: torch.device) -> Blocks:
    """Return the blocks of completions of `lengths` that are in their group from `place` on.

    A block has as many completions as have together half of the prompt's tokens. So little of its attention is masked
    out, and the copies of the prompt have at most twice as many tokens as the completions, or there is only one copy.
    """
    longest = max(1, *lengths)
    size = min(len(lengths), max(1, -(-prompt // (2 * longest))))
    blocks = -(-len(lengths) // size)
    places, count = torch.arange(longest), torch.tensor(lengths)[:, None]
    first = place + count.cumsum(0) - count
    tokens = torch.zeros(blocks * size, longest, dtype=torch.long)
    tokens[: len(lengths)] = torch.where(places < count, first + places, 0)
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
    shared: Sequence[SharedPrompt | Together] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention from queries [1 x H x S x D], keys and values [1 x K x S x D] to [1 x S x H x D].

    It is an attention function for Transformers. `shared` are the parts of the row, one after the other; without them
    this is sdpa. Raises ModelError if the model uses an option that this attention does not have.
    """
    if shared is None:
        return wide_attention.attend(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ModelError(f"attention with {name} does not share prompts")

    def attention(mask: torch.Tensor | None, q: torch.Tensor, *keys_values: torch.Tensor) -> torch.Tensor:
        k, v = wide_attention.widened(keys_values, q)
        output: torch.Tensor = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, dropout_p=dropout
        )
        return output.transpose(1, 2).flatten(0, 1)

    outputs: list[torch.Tensor] = []
    # Split once: the gradient of a slice of the whole row would be as large as the row, for each part.
    sizes = [part.tokens for part in shared]
    for part, *tensors in zip(shared, *(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True):
        if isinstance(part, Together):
            outputs.append(attention(_seen(part, sliding_window), *tensors))
            continue
        prompt = [tensor[:, :, : part.prompt] for tensor in tensors]
        outputs.append(attention(_window(part.prompt, sliding_window, query.device), *prompt))
        for blocks in part.completions:
            q, *own = (tensor[0][:, blocks.tokens].transpose(0, 1) for tensor in tensors)
            both = [torch.cat([p.expand(len(o), -1, -1, -1), o], 2) for p, o in zip(prompt[1:], own, strict=True)]
            outputs.append(attention(_seen(blocks, sliding_window), q, *both)[blocks.kept])
    return torch.cat(outputs)[None], None


def _window(tokens: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return the mask [tokens x tokens] of causal attention with a sliding window; None if all tokens are within it."""
    if window is None or tokens <= window:
        return None
    places = torch.arange(tokens, device=device)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < window)


def _seen(part: Blocks | Together, window: int | None) -> torch.Tensor:
    """Return the mask of a block [CL x (P + CL)] or of short groups, with a sliding window if there is one."""
    if window is None:
        return part.mask
    own = part.positions[-len(part.mask) :]
    return part.mask & (own[:, None] - part.positions < window)


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
