"""State of the process that is changed for a while."""

from __future__ import annotations

import gc

import pytest

from adagrpo_ray.environment import collector_off


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_off_inside_and_as_before_after(before: bool) -> None:
    was_on = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        with collector_off():
            assert not gc.isenabled()
        assert gc.isenabled() is before
    finally:
        (gc.enable if was_on else gc.disable)()
