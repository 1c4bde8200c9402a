"""A restored learner trains as if it had never stopped, at every stage of ZeRO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.updates import TrainReport
from adagrpo_ray.types import TrainBatch, TrainSample
from tests.support.engine_states import one_rank, same, through_disk

STEPS = 4
STAGES = [
    *((0, "float32"), (1, "bfloat16"), (2, "float32"), (3, "bfloat16")),
    *(
        pytest.param(stage, dtype, marks=pytest.mark.slow)
        for stage, dtype in ((0, "bfloat16"), (1, "float32"), (2, "bfloat16"), (3, "float32"))
    ),
]
"""`make test` has every stage of ZeRO once, and each type; `make test-slow` the other combinations."""


def configure(*overrides: str) -> Config:
    """Settings with dropout, so that torch's generator counts, and with a schedule that changes at every step."""
    settings = [
        f"run.steps={STEPS}",
        "model.lora.dropout=0.1",
        "learner.learning_rate=1e-3",
        "learner.weight_decay=0.01",
        "learner.schedule=cosine",
        "learner.warmup_ratio=0.5",
        "algorithm.num_iterations=1",
        "algorithm.num_mini_batches=1",
    ]
    return Config.load("launch/configs/tiny-cpu.yaml", [*settings, *overrides])


def make_samples(count: int = 6) -> tuple[TrainSample, ...]:
    rng = np.random.default_rng(0)
    return tuple(
        TrainSample(
            prompt_token_ids=rng.integers(0, 100, 5).astype(np.int32),
            token_ids=rng.integers(0, 100, 12).astype(np.int32),
            behaviour_logprobs=np.full(12, -4.0, np.float32),
            token_weights=np.full(12, 1 / (12 * count), np.float32),
            advantage=float(rng.normal()),
        )
        for _ in range(count)
    )


def make_batch(ranks: int = 1) -> tuple[TrainBatch, ...]:
    return tuple(pack_batches(1, make_samples(), ranks, 80))


def train(engine: LearnerEngine, *steps: int) -> list[TrainReport]:
    (batch,) = make_batch()
    return [engine.train(replace(batch, step=step)) for step in steps]


@pytest.mark.parametrize(("stage", "dtype"), STAGES)
def test_a_restored_learner_trains_identically(model_path: str, tmp_path: Path, stage: int, dtype: str) -> None:
    settings = (f"learner.zero_stage={stage}", f"model.dtype={dtype}")
    unbroken, restored = continuations(model_path, tmp_path, *settings)
    assert restored == unbroken


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_restored_learner_with_an_offloaded_optimizer_trains_identically(
    model_path: str, tmp_path: Path, stage: int
) -> None:
    settings = (f"learner.zero_stage={stage}", "learner.offload_optimizer=true", "model.dtype=bfloat16")
    unbroken, restored = continuations(model_path, tmp_path, *settings)
    assert restored == unbroken


def continuations(model_path: str, tmp_path: Path, *settings: str) -> tuple[list[TrainReport], list[TrainReport]]:
    """The reports of two steps after a snapshot, of its engine and of another one that restored it.

    Both end in the same state.
    """
    engine = one_rank(model_path, configure(*settings))
    train(engine, 1, 2)
    state = through_disk(engine.snapshot(), tmp_path)
    expected = train(engine, 3, 4)
    end = engine.snapshot()

    other = one_rank(model_path, configure(*settings))
    other.restore(state)
    assert same(other.snapshot(), state)
    found = train(other, 3, 4)
    assert same(other.snapshot(), end)
    assert not same(state, end)
    assert expected[0].learning_rate != expected[1].learning_rate
    return expected, found


def test_a_snapshot_does_not_change_the_learner(model_path: str) -> None:
    expected = train(one_rank(model_path, configure("learner.zero_stage=2")), 1, 2)
    other = one_rank(model_path, configure("learner.zero_stage=2"))
    before = other.snapshot()  # before Adam has any state
    assert before is not None
    assert before.optimizer_steps == 0
    assert not any(moment.any() for moment in before.moments.values())
    first = train(other, 1)
    other.snapshot()
    assert first + train(other, 2) == expected


@pytest.mark.parametrize(("stage", "dtype"), STAGES)
def test_the_first_update_is_adams_first_step(model_path: str, stage: int, dtype: str) -> None:
    """Moments have the bias correction of one step: a weight moves by the learning rate for any gradient."""
    engine = one_rank(
        model_path,
        configure(
            *(f"learner.zero_stage={stage}", f"model.dtype={dtype}"),
            *("learner.warmup_ratio=0.0", "learner.weight_decay=0.01"),
        ),
    )
    before = engine.snapshot()
    assert before is not None
    assert before.optimizer_steps == 0
    served = engine.adapter()
    assert all(np.array_equal(weight, served[name].numpy()) for name, weight in before.weights.items())
    (report,) = train(engine, 1)
    after = engine.snapshot()
    assert after is not None
    assert after.optimizer_steps == 1
    moved = 0
    for name, weight in before.weights.items():
        gradient = after.moments[f"exp_avg/{name}"] / (1 - 0.9)
        large = np.abs(gradient) > 1e-4  # large compared with Adam's epsilon
        moved += large.sum()
        step = after.weights[name] - weight * (1 - report.learning_rate * 0.01)
        np.testing.assert_allclose(step[large], -report.learning_rate * np.sign(gradient[large]), rtol=1e-2)
    assert moved > 100


@pytest.mark.parametrize(
    ("stage", "offload"),
    [
        (1, False),
        (2, True),
        (3, False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, True), (2, False), (3, True))),
    ],
)
def test_a_state_can_be_restored_at_every_stage(model_path: str, stage: int, offload: bool) -> None:
    engine = one_rank(model_path, configure())
    train(engine, 1, 2)  # the first step's learning rate is 0
    state = engine.snapshot()
    assert state is not None
    other = one_rank(model_path, configure(f"learner.zero_stage={stage}", f"learner.offload_optimizer={offload}"))
    other.restore(state)
    assert same(other.snapshot(), state)
    assert all(torch.equal(a, b) for a, b in zip(engine.adapter().values(), other.adapter().values(), strict=True))


def test_weights_are_saved_in_float32(model_path: str) -> None:
    engine = one_rank(model_path, configure("model.dtype=bfloat16"))
    train(engine, 1, 2)  # the first step's learning rate is 0
    state = engine.snapshot()
    assert state is not None
    served = engine.adapter()
    assert state.weights.keys() == served.keys()
    assert all(torch.equal(torch.tensor(w).bfloat16().float(), served[n]) for n, w in state.weights.items())
    assert any(not torch.equal(torch.tensor(w), served[n]) for n, w in state.weights.items())
