"""The plan of `make chaos`, and its count of groups. The runs themselves take minutes."""

from __future__ import annotations

import pytest

from tests.support.chaos import accounted
from tests.support.faults import FAULTS, plan


def test_plan_has_all_kinds_of_faults_at_different_steps() -> None:
    for seed in range(20):
        faults = plan(30, 16, seed)
        steps = [fault.step for fault in faults]
        assert {fault.kind for fault in faults} == set(FAULTS)
        assert steps == sorted(set(steps))
        assert min(steps) >= 1
        assert max(steps) <= 28, "a step has to follow, which shows that the run continues"


def test_plan_is_determined_by_its_seed() -> None:
    assert plan(30, 16, 1) == plan(30, 16, 1)
    assert plan(30, 16, 1) != plan(30, 16, 2)
    with pytest.raises(ValueError, match="larger"):
        plan(10, 9, 0)


def test_accounted_adds_up_groups_by_outcome() -> None:
    def step(ready: int, exhausted: int, dropped: int, waiting: int) -> dict[str, int]:
        return {
            "groups_ready": ready,
            "groups_exhausted": exhausted,
            "groups_dropped": dropped,
            "groups_waiting": waiting,
        }

    assert accounted([]) == 0
    assert (
        accounted([step(3, 0, 0, 1), step(2, 1, 0, 2)]) == 8
    )  # groups that wait after the first step are counted in the second
    assert accounted([step(3, 0, 0, 1), step(2, 1, 1, 0)]) == 7
