"""Sizes of the learner's buffers, where the memory estimate can read them too: without torch."""

from __future__ import annotations

LOGITS = 2**26  # logits (tokens x vocabulary) that exist at a time: 256 MiB in float32
# Numbers in the buffer that DeepSpeed reduces gradients in (stages 1 to 3). Its own default, 5e8, is made for whole
# models; this holds an adapter of rank 16 of a model of 1.7 billion parameters.
REDUCE_BUCKET = 20_000_000


def chunk_tokens(vocabulary: int) -> int:
    """How many tokens' logits may exist at a time: at least one's."""
    return max(1, LOGITS // vocabulary)
