"""What a fleet does about an error that one of its tasks did not handle."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config import Config
from adagrpo_ray.errors import RolloutError
from adagrpo_ray.rollout.fleet import Fleet
from tests.support.places import TINY


def test_an_unexpected_error_ends_the_wait_for_the_actors() -> None:
    async def scenario() -> None:
        fleet: Any = Fleet(Config.load(TINY), Placement(1, 1, 0, 1, 1, 0), None, 64)

        async def start() -> None:
            raise OSError("no space left")

        fleet._spawn(start())
        with pytest.raises(RolloutError, match="rollout actors failed: OSError: no space left"):
            await fleet.ready()

    asyncio.run(scenario())
