"""An update with a number that is not finite is skipped on all ranks, and does not change the state at any stage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.errors import CheckpointError, DivergedError
from adagrpo_ray.learner.actor import LearnerActor
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.types import TrainBatch
from tests.support.batches import FAULTS, bad, good
from tests.support.engine_states import bytes_of, one_rank

STAGES: list[Any] = [
    ["zero_stage=0", "dtype=bfloat16"],
    ["zero_stage=1", "dtype=float32"],
    ["zero_stage=2", "dtype=bfloat16", "offload_optimizer=true"],
    ["zero_stage=3", "dtype=float32"],
    *(
        pytest.param(settings, marks=pytest.mark.slow)
        for settings in (
            ["zero_stage=0", "dtype=float32"],
            ["zero_stage=1", "dtype=bfloat16"],
            ["zero_stage=1", "dtype=bfloat16", "offload_optimizer=true"],
            ["zero_stage=2", "dtype=float32"],
            ["zero_stage=2", "dtype=bfloat16"],
            ["zero_stage=3", "dtype=bfloat16"],
            ["zero_stage=3", "dtype=bfloat16", "offload_optimizer=true"],
        )
    ),
]
"""`make test` has each stage of ZeRO, each type and the offloaded optimizer once; `make test-slow` all combinations."""


def configure(*overrides: str) -> Config:
    settings = [
        *("learner.learning_rate=1e-3", "learner.warmup_ratio=0.0", "learner.schedule=linear", "run.steps=8"),
        *("algorithm.num_iterations=1", "algorithm.num_mini_batches=1", "algorithm.loss.beta=0.04"),
    ]
    return Config.load("launch/configs/tiny-cpu.yaml", [*settings, *overrides])


def of_stage(settings: list[str]) -> list[str]:
    return [f"{'model' if setting.startswith('dtype') else 'learner'}.{setting}" for setting in settings]


def adapter_bytes(engine: LearnerEngine) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in engine.adapter().items()}


@pytest.mark.parametrize("settings", STAGES, ids=",".join)
def test_a_skipped_update_does_not_change_the_state(model_path: str, settings: list[str]) -> None:
    """It does not change weights, moments, or anything in DeepSpeed that counts in the next update."""
    engine = one_rank(model_path, configure(*of_stage(settings)))
    engine.train(good(1)[0])
    before, served = bytes_of(engine.snapshot()), adapter_bytes(engine)
    fault, cause = FAULTS["NaN behaviour"]
    report = engine.train(bad(2, **fault)[0])
    assert (report.skipped, report.cause, report.first, report.last) == (1, cause, None, None)
    assert bytes_of(engine.snapshot()) == before
    assert adapter_bytes(engine) == served
    after = engine.train(good(3)[0])

    other = one_rank(model_path, configure(*of_stage(settings)))
    other.train(good(1)[0])
    assert other.train(good(3)[0]) == after
    assert after.skipped_in_a_row == 0
    assert bytes_of(other.snapshot()) == bytes_of(engine.snapshot()) != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_number_that_is_not_finite_skips_the_update(model_path: str, dtype: str) -> None:
    engine = one_rank(model_path, configure(f"model.dtype={dtype}", "learner.max_skipped_updates=100"))
    before = bytes_of(engine.snapshot())
    for step, (fields, cause) in enumerate(FAULTS.values(), start=1):
        report = engine.train(bad(step, **fields)[0])
        assert (report.skipped, report.cause) == (1, cause)
        assert bytes_of(engine.snapshot()) == before


@pytest.mark.parametrize(
    ("part", "cause"), [("lora_B", "policy log-probabilities"), ("embed_tokens", "policy log-probabilities")]
)
def test_weights_that_are_not_finite_skip_the_update(model_path: str, part: str, cause: str) -> None:
    engine = one_rank(model_path, configure())
    parameter = next(p for name, p in engine._policy.named_parameters() if part in name)
    with torch.no_grad():
        parameter.fill_(math.nan)
    report = engine.train(good(1)[0])
    assert (report.skipped, report.cause) == (1, cause)


def test_a_reference_that_is_not_finite_skips_the_update(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = one_rank(model_path, configure())
    reference = engine._reference
    monkeypatch.setattr(engine, "_reference", lambda rows: reference(rows) / 0.0)
    report = engine.train(good(1)[0])
    assert (report.skipped, report.cause) == (1, "reference log-probabilities")


def test_skipped_updates_in_a_row_are_counted_over_steps_and_checkpoints(model_path: str) -> None:
    fault, _ = FAULTS["NaN advantage"]
    engine = one_rank(model_path, configure())
    assert [engine.train(bad(step, **fault)[0]).skipped_in_a_row for step in (1, 2)] == [1, 2]
    empty = engine.train(TrainBatch(3, ()))
    assert (empty.skipped, empty.skipped_in_a_row) == (0, 2)  # nothing was tried
    state = engine.snapshot()
    assert state is not None
    other = one_rank(model_path, configure())
    other.restore(state)
    assert other.train(bad(4, **fault)[0]).skipped_in_a_row == 3
    assert other.train(good(5)[0]).skipped_in_a_row == 0


def test_a_skipped_update_ends_its_batch(model_path: str) -> None:
    """The next update on it would start from the same weights."""
    engine = one_rank(model_path, configure("algorithm.num_iterations=3"))
    batch = replace(bad(1, **FAULTS["NaN advantage"][0])[0], passes=3)
    report = engine.train(batch)
    assert (report.skipped, report.skipped_in_a_row, report.last) == (1, 1, None)


def test_skips_in_a_later_mini_batch_are_counted_over_steps(model_path: str) -> None:
    """Updates on the mini-batches before it do not end the count: the run would go on for ever."""
    engine = one_rank(model_path, configure())
    fault, _ = FAULTS["NaN advantage"]
    for step in (1, 2):
        parts = good(step)[0].mini_batches + bad(step, **fault)[0].mini_batches
        report = engine.train(TrainBatch(step, parts))
        assert (report.skipped, report.skipped_in_a_row) == (1, step)
        assert report.first is not None
    assert engine.train(good(3)[0]).skipped_in_a_row == 0


def test_skipped_and_empty_steps_advance_the_schedule(model_path: str) -> None:
    engine = one_rank(model_path, configure())
    batches = [good(1)[0], TrainBatch(2, ()), bad(3, **FAULTS["NaN advantage"][0])[0], good(4)[0]]
    rates = [engine.train(batch).learning_rate for batch in batches]
    assert rates == pytest.approx([1e-3 * (8 - done) / 8 for done in range(4)])
    assert {group["lr"] for group in engine._engine.basic_optimizer.param_groups} == {rates[-1]}


def test_a_checkpoint_with_numbers_that_are_not_finite_is_refused(model_path: str) -> None:
    engine = one_rank(model_path, configure())
    state = engine.snapshot()
    assert state is not None
    for kind in ("weights", "moments"):
        arrays = dict(getattr(state, kind))
        name = next(iter(arrays))
        arrays[name] = np.full_like(arrays[name], math.nan)
        with pytest.raises(CheckpointError, match=f"{name}.*not finite.*earlier checkpoint"):
            engine.restore(replace(state, **{kind: arrays}))


def test_an_adapter_that_is_not_finite_is_not_sent(model_path: str) -> None:
    actor = LearnerActor()
    actor._config, actor._rank, actor._engine = configure(), 0, one_rank(model_path, configure())
    with torch.no_grad():
        next(p for p in actor._engine._policy.parameters() if p.requires_grad).fill_(math.inf)
    with pytest.raises(DivergedError, match=r"after step 7.*lora_A.*learner\.learning_rate"):
        actor.sync(7)
