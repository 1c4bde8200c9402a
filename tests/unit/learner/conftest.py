"""Fixtures of the learner's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adagrpo_ray.learner.background import Background


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()
