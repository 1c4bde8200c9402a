"""A soft penalty on completions that approach the token limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adagrpo_ray.types import Floats


def overlong_penalty(lengths: Sequence[int], max_new_tokens: int, buffer: int) -> Floats:
    """Penalties [G], from 0 to -1, to add to the rewards of completions of these lengths (arXiv 2503.14476, eq. 13).

    The penalty is 0 up to `buffer` tokens before the limit and falls linearly to -1 at the limit. Worked example: with
    a limit of 100 and a buffer of 20, lengths 80, 90 and 100 get 0, -0.5 and -1.
    """
    over = np.asarray(lengths, np.float32) - (max_new_tokens - buffer)
    return -np.clip(over / buffer, 0.0, 1.0).astype(np.float32)
