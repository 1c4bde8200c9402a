"""An environment without variables of Ray and its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adagrpo_ray.cluster.authentication import read_again


@contextmanager
def without_tokens() -> Iterator[None]:
    """Remove Ray's variables within the block, and restore them after it."""
    with pytest.MonkeyPatch.context() as environment:  # undone after the changes of the test itself
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            environment.delenv(name, raising=False)
        read_again()
        yield
    read_again()
