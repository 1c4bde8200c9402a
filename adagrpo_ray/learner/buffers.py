"""Sizes of the learner's buffers; without torch, so that the memory estimate can import them quickly."""

from __future__ import annotations

LOGITS = 2**26  # logits (tokens x vocabulary) that exist at a time: 256 MiB in float32
# Size, in numbers, of the buffer that DeepSpeed reduces gradients in (stages 1 to 3). DeepSpeed's default, 5e8, suits
# whole models. An adapter of rank 16 of a model of 1.7 billion parameters fits into this size.
REDUCE_BUCKET = 20_000_000


def chunk_tokens(vocabulary: int) -> int:
    """The number of tokens whose logits may exist at a time, at least 1."""
    return max(1, LOGITS // vocabulary)
