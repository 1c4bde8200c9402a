"""How far rollouts may run ahead of a step, and after which steps a checkpoint is made."""

from __future__ import annotations

import pytest

from adagrpo_ray.config import load_config
from adagrpo_ray.trainer import _ahead, _is_best


@pytest.mark.parametrize(
    ("staleness", "every", "ahead"),
    [
        (0, 0, [1, 2, 3, 4, 5, 6, 7]),
        (1, 0, [2, 3, 4, 5, 6, 7, 7]),
        (3, 0, [4, 5, 6, 7, 7, 7, 7]),
        (1, 3, [2, 3, 3, 5, 6, 6, 7]),  # no rollout of step 4 is in flight when step 3 is saved
        (9, 2, [2, 2, 4, 4, 6, 6, 7]),
        (9, 1, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_rollouts_run_ahead_up_to_the_next_checkpoint(staleness: int, every: int, ahead: list[int]) -> None:
    overrides = ["run.steps=7", f"algorithm.max_staleness={staleness}", f"checkpoint.every={every}"]
    config = load_config(None, overrides)
    assert [_ahead(config, step) for step in range(1, 8)] == ahead


@pytest.mark.parametrize(("every", "ahead"), [(0, [2, 2, 4, 4, 6, 6, 7]), (3, [2, 2, 3, 4, 6, 6, 7])])
def test_nor_past_a_measurement_that_may_be_the_best(every: int, ahead: list[int]) -> None:
    overrides = ["run.steps=7", "algorithm.max_staleness=9", "evaluation.every=2", f"checkpoint.every={every}"]
    config = load_config(None, [*overrides, "checkpoint.keep_best=true"])
    assert [_ahead(config, step) for step in range(1, 8)] == ahead


def test_a_measurement_is_the_best_where_it_beats_all_after_training() -> None:
    measured: dict[int, float] = {0: 0.9}
    found = []
    for step, accuracy in ((2, 0.25), (4, 0.5), (6, 0.5), (8, 0.25), (10, 0.75)):
        measured[step] = accuracy
        found += [s for s in (step, step + 1) if _is_best(measured, s)]
    assert found == [2, 4, 10]
