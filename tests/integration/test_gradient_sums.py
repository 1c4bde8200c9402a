"""The gradient of many micro-batches is that of one, at every stage of DeepSpeed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo_ray.config import Config
from tests.support.batches import PARTS, equal_batches
from tests.support.engine_states import BETA1, assert_same_gradient, gradient_of, one_rank

MORE = (64, 256)
"""Numbers of micro-batches of a step with long completions."""


def configure(*overrides: str) -> Config:
    settings = [
        *(
            "model.dtype=bfloat16",
            "learner.learning_rate=1e-4",
            "learner.warmup_ratio=0.0",
            "learner.max_grad_norm=1e6",
        ),
        *(
            "algorithm.num_iterations=1",
            "algorithm.num_mini_batches=1",
            "algorithm.loss.beta=0.0",
            f"learner.betas=[{BETA1},0.999]",
            "run.steps=4",
        ),
    ]
    return Config.load("launch/configs/tiny-cpu.yaml", [*settings, *overrides])


@pytest.fixture(scope="module")
def wanted(model_path: str) -> dict[str, Any]:
    """The gradient of one micro-batch."""
    engine = one_rank(model_path, configure())
    engine.train(equal_batches(1)[0])
    return gradient_of(engine.snapshot())


@pytest.mark.parametrize("parts", [PARTS, *MORE])
def test_a_sum_in_bfloat16_would_fail_the_comparison(wanted: dict[str, Any], parts: int) -> None:
    rounded = {name: torch.from_numpy(gradient).bfloat16() for name, gradient in wanted.items()}
    low = {name: torch.zeros_like(gradient) for name, gradient in rounded.items()}
    for _ in range(parts):
        for name, gradient in rounded.items():
            low[name] += gradient / parts
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_gradient({name: gradient.float().numpy() for name, gradient in low.items()}, wanted)


@pytest.mark.parametrize(
    "settings",
    [
        *[[f"zero_stage={stage}"] for stage in range(4)],
        ["zero_stage=2", "offload_optimizer=true"],
        *(pytest.param([f"zero_stage={stage}", "offload_optimizer=true"], marks=pytest.mark.slow) for stage in (1, 3)),
    ],
    ids=",".join,
)
def test_many_micro_batches_give_the_gradient_of_one(
    model_path: str, wanted: dict[str, Any], settings: list[str]
) -> None:
    config = configure(*[f"learner.{setting}" for setting in settings])
    engine = one_rank(model_path, config)
    (batch,) = equal_batches(PARTS)
    assert len(batch.micro_batches) == PARTS
    report = engine.train(batch)
    assert report.first is not None
    assert_same_gradient(gradient_of(engine.snapshot()), wanted)


@pytest.mark.parametrize("parts", MORE)
def test_hundreds_of_micro_batches_give_the_gradient_of_one(
    model_path: str, wanted: dict[str, Any], parts: int
) -> None:
    engine = one_rank(model_path, configure("learner.zero_stage=0"))
    (batch,) = equal_batches(parts)
    assert len(batch.micro_batches) == parts
    engine.train(batch)
    assert_same_gradient(gradient_of(engine.snapshot()), wanted)


@pytest.mark.parametrize("stage", range(4))
def test_the_gradient_is_clipped_to_max_grad_norm_alone(model_path: str, stage: int) -> None:
    """In bfloat16 each number is rounded after it is clipped."""
    (batch,) = equal_batches(1)
    samples = [replace(sample, token_weights=sample.token_weights * 1000) for sample in batch.micro_batches[0]]
    for most in (0.01, 1e6):
        engine = one_rank(model_path, configure(f"learner.max_grad_norm={most}", f"learner.zero_stage={stage}"))
        report = engine.train(replace(batch, mini_batches=((tuple(samples),),)))
        assert report.first is not None
        assert report.first.grad_norm > 2.0  # before it is clipped, and above DeepSpeed's own limit of 1
        gradient = gradient_of(engine.snapshot())
        norm = np.sqrt(sum(np.square(part).sum() for part in gradient.values()))
        assert norm == pytest.approx(min(most, report.first.grad_norm), rel=1e-3)
