"""Sizes of the learner's buffers; without torch, so that the memory estimate can import them quickly."""

from __future__ import annotations

LOGITS = 2**26  # most logits (tokens x vocabulary) that exist at a time: 256 MiB in float32
FEWEST_TOKENS = 32  # of a chunk if memory is short; fewer would take long, for little memory
# The backward pass of logsumexp and of the sampled logits has five float32 numbers a logit at a time: the logits, the
# gradient so far, the difference of the logits to the logsumexp, its exponential, and the product of that with the
# gradient.
LOGIT_BYTES = 5 * 4
ENTROPY_BYTES = 2 * 4  # additional ones with an entropy bonus: its own gradient by the logits, and the sum of both
# Largest size, in numbers, of the buffer that DeepSpeed reduces gradients in (stages 1 to 3). DeepSpeed's default, 5e8,
# suits whole models. An adapter of rank 16 of a model of 1.7 billion parameters fits into this size.
REDUCE_BUCKET = 20_000_000


def chunk_tokens(vocabulary: int, free: int | None = None) -> int:
    """The number of tokens whose logits may exist at a time, at least 1.

    `free` are the bytes that new tensors may have on the device; the logits of a chunk and of its backward pass take
    at most half of them, unless that is less than FEWEST_TOKENS tokens. None: as many as LOGITS allows.
    """
    most = max(1, LOGITS // vocabulary)
    if free is None:
        return most
    return min(most, max(FEWEST_TOKENS, free // 2 // logit_bytes(vocabulary, entropy_gradient=True)))


def logit_bytes(vocabulary: int, *, entropy_gradient: bool) -> int:
    """Bytes of the logits of one token in the backward pass of their chunk."""
    return vocabulary * (LOGIT_BYTES + (ENTROPY_BYTES if entropy_gradient else 0))


def reduce_bucket(adapter: int) -> int:
    """The size, in numbers, of the buffer that DeepSpeed reduces the gradients of `adapter` parameters in."""
    return min(adapter, REDUCE_BUCKET)
