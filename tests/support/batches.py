"""Training samples and batches made by hand, valid ones and ones with a fault."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.types import TrainBatch, TrainSample


def make_samples(count: int = 13) -> tuple[TrainSample, ...]:
    """Completions of five prompts, with random lengths and tokens. The first token of each is 0, the pad token."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, count)
    prompts = [rng.integers(0, 100, rng.integers(3, 20)).astype(np.int32) for _ in range(5)]
    total = int(lengths.sum())
    return tuple(
        TrainSample(
            prompt_token_ids=prompts[number % len(prompts)],
            token_ids=np.concatenate([[0], rng.integers(0, 100, length - 1)]).astype(np.int32),
            behaviour_logprobs=np.full(length, -4.0, np.float32),
            token_weights=np.full(length, 1 / total, np.float32),
            advantage=float(rng.normal()),
            difficulty=("easy", "hard", "")[number % 3],
        )
        for number, length in enumerate(lengths)
    )


def falling_samples() -> list[TrainSample]:
    """Samples of decreasing length, which keep their order in a batch."""
    rng = np.random.default_rng(0)
    return [
        TrainSample(
            prompt_token_ids=rng.integers(0, 100, 5).astype(np.int32),
            token_ids=rng.integers(0, 100, length).astype(np.int32),
            behaviour_logprobs=np.full(length, -4.0, np.float32),
            token_weights=np.full(length, 1 / 40, np.float32),
            advantage=advantage,
        )
        for length, advantage in ((14, 1.0), (12, -1.0), (10, 0.5), (8, -0.5))
    ]


def good(step: int, ranks: int = 1) -> list[TrainBatch]:
    return pack_batches(step, falling_samples(), ranks, 20)


def bad(step: int, ranks: int = 1, at: int = 1, **fault: Any) -> list[TrainBatch]:
    """A batch whose sample `at`, in a micro-batch of its own, has the fields of `fault`."""
    samples = falling_samples()
    samples[at] = replace(samples[at], **fault)
    return pack_batches(step, samples, ranks, 20)


def with_logprob(value: float) -> dict[str, Any]:
    logprobs = np.full(12, -4.0, np.float32)
    logprobs[5] = value
    return {"behaviour_logprobs": logprobs}


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN behaviour": (with_logprob(math.nan), "behaviour log-probabilities"),
    "-inf behaviour": (with_logprob(-math.inf), "behaviour log-probabilities"),
    "NaN advantage": ({"advantage": math.nan}, "advantages"),
    "infinite weight": ({"token_weights": np.full(12, math.inf, np.float32)}, "advantages"),
    # A very low sampling log-probability, so that the weight of each token is 2, the cap of the rollout correction.
    "infinite loss": (
        {
            "advantage": 3e38,
            "token_weights": np.full(12, 1.0, np.float32),
            "behaviour_logprobs": np.full(12, -30.0, np.float32),
        },
        "loss",
    ),
    "infinite gradient": ({"advantage": 1e30}, "gradient"),
}


PARTS = 32
"""Micro-batches with the same gradient, whose sum is compared with that of one."""


def equal_batches(parts: int, ranks: int = 1) -> list[TrainBatch]:
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
