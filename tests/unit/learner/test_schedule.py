"""The learning rate of every update equals that of Transformers' schedules, also for steps without an update."""

from __future__ import annotations

import pytest
import torch
import transformers

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.learner.schedule import learning_rate

NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def configure(schedule: str, warmup: float, steps: int, updates: int) -> Config:
    return Config.load(
        None,
        [
            f"run.steps={steps}",
            f"algorithm.num_iterations={updates}",
            "algorithm.num_mini_batches=1",
            f"learner.schedule={schedule}",
            f"learner.warmup_ratio={warmup}",
            "learner.learning_rate=5e-4",
        ],
    )


def theirs(schedule: str, warmup: float, total: int) -> list[float]:
    """The rates of `total` updates by PyTorch's LambdaLR with Transformers' factors."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    scheduler = transformers.get_scheduler(NAMES[schedule], optimizer, round(warmup * total), total)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", NAMES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("steps", "updates"), [(1, 3), (2, 1), (7, 1), (10, 1), (10, 4)])
def test_learning_rates_equal_those_of_transformers(schedule: str, warmup: float, steps: int, updates: int) -> None:
    config = configure(schedule, warmup, steps, updates)
    rates = [learning_rate(config, step, update) for step in range(1, steps + 1) for update in range(updates)]
    assert rates == pytest.approx(theirs(schedule, warmup, steps * updates), rel=1e-12, abs=1e-20)


@pytest.mark.parametrize("schedule", NAMES)
def test_a_run_of_one_update_has_the_peak_rate(schedule: str) -> None:
    assert learning_rate(configure(schedule, 0.1, 1, 1), 1) == 5e-4


@pytest.mark.parametrize("warmup", [0.6, 1.0])
def test_a_warmup_that_covers_the_only_update_is_refused(warmup: float) -> None:
    with pytest.raises(ConfigError, match=rf"learner\.warmup_ratio={warmup}.*run\.steps=1.*rate of 0"):
        configure("linear", warmup, 1, 1)


def test_a_linear_schedule_without_warmup_ends_one_update_above_zero() -> None:
    config = configure("linear", 0.0, 4, 1)
    assert [learning_rate(config, step) for step in (1, 2, 3, 4)] == pytest.approx([5e-4, 3.75e-4, 2.5e-4, 1.25e-4])
