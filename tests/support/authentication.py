"""An environment that says nothing of Ray and its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adagrpo_ray.cluster.authentication import read_again


@contextmanager
def untold() -> Iterator[None]:
    """Within the block; after it, Ray goes by the environment that was there before."""
    with pytest.MonkeyPatch.context() as environment:  # undone after what the test itself sets
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            environment.delenv(name, raising=False)
        read_again()
        yield
    read_again()
