"""The model of these tests, and prompts for it."""

from __future__ import annotations

import pytest

from adagrpo_ray.types import Prompt
from tests.support.real_model import base_model, six_prompts


@pytest.fixture(scope="module")
def model_path() -> str:
    return base_model()


@pytest.fixture(scope="module")
def prompts() -> tuple[Prompt, ...]:
    return six_prompts()
