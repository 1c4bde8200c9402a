"""How far rollouts may run ahead of a step."""

from __future__ import annotations

import pytest

from adagrpo_ray.config import load_config
from adagrpo_ray.trainer import _ahead


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
