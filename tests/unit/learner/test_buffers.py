"""Sizes of the learner's buffers: chunks of logits by the memory that is left, and DeepSpeed's buffer."""

from __future__ import annotations

import pytest

from adagrpo_ray.learner.buffers import FEWEST_TOKENS, REDUCE_BUCKET, chunk_tokens, logit_bytes, reduce_bucket

VOCABULARY = 151_936
GIB = 2**30


@pytest.mark.parametrize(
    ("free", "tokens"),
    [
        (None, 441),  # 2**26 / 151,936 is 441.7
        (80 * GIB, 441),
        (4 * GIB, 441),
        (2 * GIB, 252),  # half of it, and 28 bytes a logit: 252.4
        (GIB, 126),
        (GIB // 8, FEWEST_TOKENS),
        (0, FEWEST_TOKENS),
    ],
)
def test_chunk_of_logits_takes_at_most_half_of_the_memory_that_is_left(free: int | None, tokens: int) -> None:
    assert chunk_tokens(VOCABULARY, free) == tokens


def test_chunk_has_at_least_one_token() -> None:
    assert chunk_tokens(2**27) == chunk_tokens(2**27, 0) == 1


def test_bytes_of_logits() -> None:
    assert logit_bytes(1000, entropy_gradient=False) == 20_000
    assert logit_bytes(1000, entropy_gradient=True) == 28_000


def test_reduce_buffer_is_as_large_as_the_adapter_up_to_a_bound() -> None:
    assert reduce_bucket(17_432_576) == 17_432_576
    assert reduce_bucket(10**9) == REDUCE_BUCKET
