"""State of the process that is changed for a while."""

from __future__ import annotations

import gc

import pytest

from adagrpo_ray.environment import collector_off


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_is_as_it_was_after_an_error_too(before: bool) -> None:
    was_on = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        with pytest.raises(ValueError, match="inside"), collector_off():
            assert not gc.isenabled()
            raise ValueError("inside")
        assert gc.isenabled() is before
    finally:
        (gc.enable if was_on else gc.disable)()
