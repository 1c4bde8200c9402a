"""Gradients of many micro-batches and ranks are that of one, at every stage of DeepSpeed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray
import torch

from adagrpo_ray.config import Config, load_config
from adagrpo_ray.learner.actor import LearnerActor
from adagrpo_ray.learner.engine import EngineState, LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.types import TrainBatch, TrainSample

PARTS = 32
"""Micro-batches with the same gradient, whose sum in bfloat16 is off by more than `assert_same` allows.

A power of two, so that each one's is that of the whole batch to the last bit, but for the exponent.
"""
BETA1 = 0.9


def configure(*overrides: str) -> Config:
    settings = [
        *(
            "model.dtype=bfloat16",
            "learner.learning_rate=1e-4",
            "learner.warmup_ratio=0.0",
            "learner.max_grad_norm=1e6",
        ),
        *("algorithm.num_iterations=1", "algorithm.loss.beta=0.0", f"learner.betas=[{BETA1},0.999]", "run.steps=4"),
    ]
    return load_config("launch/configs/tiny-cpu.yaml", [*settings, *overrides])


def make_batch(parts: int, ranks: int = 1) -> list[TrainBatch]:
    """The same completion `parts` times, each in a micro-batch of its own; the weights of their tokens add up to 1."""
    tokens = np.arange(1, 7, dtype=np.int32)
    sample = TrainSample(
        prompt_token_ids=tokens,
        token_ids=tokens,
        behaviour_logprobs=np.full(6, -4.0, np.float32),
        token_weights=np.full(6, 1 / (6 * parts), np.float32),
        advantage=1.0,
    )
    return pack_batches(1, [sample] * parts, ranks, 12)


def gradient_of(state: EngineState | None) -> dict[str, Any]:
    """The gradient that Adam got in its first step, by its first moment."""
    assert state is not None
    assert state.optimizer_steps == 1
    return {name: m / (1 - BETA1) for name, m in state.moments.items() if name.startswith("exp_avg/")}


def assert_same(gradient: dict[str, Any], wanted: dict[str, Any]) -> None:
    """To within the one rounding to bfloat16 (2^-9) of each that both went through, and float32's of the sum."""
    largest = max(np.abs(g).max() for g in wanted.values())
    assert largest > 1e-4
    for name in wanted:
        np.testing.assert_allclose(gradient[name], wanted[name], rtol=2**-7, atol=largest * 1e-5)


@pytest.fixture(scope="module")
def wanted(model_path: str) -> dict[str, Any]:
    """The gradient of one micro-batch."""
    engine = LearnerEngine(model_path, configure(), 0, 1, ("127.0.0.1", 0))
    engine.train(make_batch(1)[0])
    return gradient_of(engine.snapshot())


def test_a_sum_in_bfloat16_would_be_seen(wanted: dict[str, Any]) -> None:
    rounded = {name: torch.from_numpy(gradient).bfloat16() for name, gradient in wanted.items()}
    low = {name: torch.zeros_like(gradient) for name, gradient in rounded.items()}
    for _ in range(PARTS):
        for name, gradient in rounded.items():
            low[name] += gradient / PARTS
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same({name: gradient.float().numpy() for name, gradient in low.items()}, wanted)


@pytest.mark.parametrize(
    "settings",
    [[f"zero_stage={stage}"] for stage in range(4)]
    + [[f"zero_stage={stage}", "offload_optimizer=true"] for stage in (1, 2, 3)],
    ids=",".join,
)
def test_many_micro_batches_give_the_gradient_of_one(
    model_path: str, wanted: dict[str, Any], settings: list[str]
) -> None:
    config = configure(*[f"learner.{setting}" for setting in settings])
    engine = LearnerEngine(model_path, config, 0, 1, ("127.0.0.1", 0))
    (batch,) = make_batch(PARTS)
    assert len(batch.micro_batches) == PARTS
    report = engine.train(batch)
    assert report.first is not None
    assert_same(gradient_of(engine.snapshot()), wanted)


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_so_do_many_micro_batches_on_two_ranks(model_path: str, wanted: dict[str, Any], stage: int) -> None:
    class Rank(LearnerActor):
        def snapshot(self) -> EngineState | None:
            return self._engine.snapshot()

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        ranks = [ray.remote(Rank).remote() for _ in range(2)]
        master = ray.get(ranks[0].address.remote())
        config = configure("learner.ranks=2", f"learner.zero_stage={stage}")
        ray.get([actor.start.remote(config, rank, ModelFiles(model_path), master) for rank, actor in enumerate(ranks)])
        ray.get([rank.train.remote(batch) for rank, batch in zip(ranks, make_batch(2 * PARTS, 2), strict=True)])
        state, _ = ray.get([rank.snapshot.remote() for rank in ranks])
    finally:
        ray.shutdown()
    assert_same(gradient_of(state), wanted)
