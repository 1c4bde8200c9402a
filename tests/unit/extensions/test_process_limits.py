"""The limit of memory of a process that runs functions of the user."""

from __future__ import annotations

import resource

from adagrpo_ray.extensions.process_limits import limited_memory


def limit() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_DATA)


def test_memory_is_limited_within_the_block_only() -> None:
    before = limit()
    with limited_memory(512.0):
        assert limit() == (512 * 2**30, before[1])
    assert limit() == before


def test_without_a_limit_that_of_the_process_stays() -> None:
    before = limit()
    with limited_memory(None):
        assert limit() == before
