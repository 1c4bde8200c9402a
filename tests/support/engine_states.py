"""Makes engines of one rank, compares engine states, and writes them to disk as a checkpoint does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo_ray.checkpoint.files import load, save
from adagrpo_ray.config import Config
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.engine_state import EngineState
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.updates import TrainReport, UpdateReport
from tests.support.batches import make_samples

BETA1 = 0.9
"""Adam's beta1 in the runs whose first moment `gradient_of` reads."""


def one_rank(model_path: str, config: Config) -> LearnerEngine:
    return LearnerEngine(model_path, config, 0, 1, ("127.0.0.1", 0))


def made(report: TrainReport) -> UpdateReport:
    """The report of the last update; asserts that it was made."""
    assert report.last is not None
    assert report.skipped == 0
    return report.last


def updates_of_one_rank(model_path: str, config: Config) -> list[UpdateReport]:
    """The updates of a run on one rank, with all samples of a step in one micro-batch."""
    engine = one_rank(model_path, config)
    (batch,) = pack_batches(1, make_samples(), 1, 100_000)
    assert len(batch.micro_batches) == 1
    return [made(engine.train(replace(batch, step=step))) for step in range(1, config.run.steps + 1)]


def through_disk(state: EngineState | None, folder: Path) -> EngineState:
    """The state, written to a checkpoint and read back."""
    assert state is not None
    arrays = {"weights": state.weights, "moments": state.moments, "random": state.random}
    contents = {**{f"{k}.safetensors": v for k, v in arrays.items()}, "state.json": {}}
    save(folder, 1, contents, 1)
    files = load(folder / "step-000001")
    return replace(state, **{k: files[f"{k}.safetensors"] for k in arrays})


def same(one: EngineState | None, other: EngineState | None) -> bool:
    assert one is not None
    assert other is not None
    pairs = [(one.weights, other.weights), (one.moments, other.moments), (one.random, other.random)]
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
        for a, b in pairs
    ) and (one.optimizer_steps, one.skipped_in_a_row) == (other.optimizer_steps, other.skipped_in_a_row)


def bytes_of(state: EngineState | None) -> dict[str, bytes]:
    """The state as bytes, without the number of skipped updates."""
    assert state is not None
    arrays = {**state.weights, **state.moments, **{f"random/{k}": v for k, v in state.random.items()}}
    return {**{name: value.tobytes() for name, value in arrays.items()}, "steps": bytes([state.optimizer_steps])}


def gradient_of(state: EngineState | None) -> dict[str, Any]:
    """The gradient of Adam's first step, computed from the first moment."""
    assert state is not None
    assert state.optimizer_steps == 1
    return {name: m / (1 - BETA1) for name, m in state.moments.items() if name.startswith("exp_avg/")}


def assert_same_gradient(gradient: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that gradients are equal, up to one rounding to bfloat16 (2^-9) of each and float32's rounding of sums."""
    largest = max(np.abs(g).max() for g in expected.values())
    assert largest > 1e-4
    for name in expected:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=2**-7, atol=largest * 1e-5)
