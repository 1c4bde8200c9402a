"""vLLM and the learner agree on a language model, before and after training steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.lora.payload import AdapterWeights, pack
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.types import Completion, Prompt, TrainSample
from tests.support.engine_states import one_rank
from tests.support.real_model import AGREE, REAL, ask, configure

pytestmark = REAL

PROMPTS_AND_STEPS = {"float32": (6, 3), "bfloat16": (2, 1)}
"""Prompts and steps of test_rollouts_and_learner_agree_after_steps, by type.

CPUs without instructions for bfloat16 take a minute for a step on two prompts.
"""


def samples_of(prompts: Sequence[Prompt], answers: Sequence[Sequence[Completion]]) -> tuple[TrainSample, ...]:
    """Training samples of the completions, with advantages that add up to 0."""
    total = sum(len(c.token_ids) for group in answers for c in group)
    return tuple(
        TrainSample(
            prompt_token_ids=prompt.token_ids,
            token_ids=c.token_ids,
            behaviour_logprobs=c.logprobs,
            token_weights=np.full(len(c.token_ids), 1 / total, np.float32),
            advantage=advantage,
        )
        for prompt, group in zip(prompts, answers, strict=True)
        for c, advantage in zip(group, (1.0, -1.0, 0.5, -0.5), strict=True)
    )


def weights_of(learner: LearnerEngine, version: int, config: Config) -> AdapterWeights:
    lora = config.model.lora
    return pack(version, learner.adapter(), lora.r, lora.alpha, getattr(torch, config.model.dtype))


def logp_difference(learner: LearnerEngine, samples: Sequence[TrainSample]) -> np.ndarray[Any, Any]:
    """The difference of log-probabilities between the learner and the engine, by token."""
    expected = learner.logprobs(tuple(samples))
    return np.abs(np.concatenate(expected) - np.concatenate([s.behaviour_logprobs for s in samples]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sync", ["adapter", "merged"])
def test_rollouts_and_learner_agree_after_steps(
    model_path: str, prompts: tuple[Prompt, ...], sync: str, dtype: str
) -> None:
    config, (most, steps) = configure(f"rollout.lora_mode={sync}", f"model.dtype={dtype}"), PROMPTS_AND_STEPS[dtype]
    learner = one_rank(model_path, config)

    async def draw(engine: RolloutEngine, seed: int) -> tuple[TrainSample, ...]:
        answers = await asyncio.gather(*(engine.generate(ask(prompt, seed)) for prompt in prompts[:most]))
        return samples_of(prompts[:most], answers)

    async def scenario() -> None:
        engine = await RolloutEngine.start(model_path, 256, config)
        try:
            await engine.apply(weights_of(learner, 0, config))
            samples = await draw(engine, 1)
            first = logp_difference(learner, samples)
            for step in range(1, steps + 1):
                (batch,) = pack_batches(step, samples, 1, config.learner.micro_batch_tokens, learner.packing)
                update = learner.train(batch).last
                assert update is not None
                assert update.grad_norm > 0
            moved = logp_difference(learner, samples)
            await engine.apply(weights_of(learner, 1, config))
            after = logp_difference(learner, await draw(engine, 2))
        finally:
            await engine.stop()
        mean, largest = AGREE[dtype]
        print(f"{sync} {dtype}: {first.mean():.2g} {first.max():.2g}, moved {moved.mean():.2g}", end=", ")
        print(f"after {after.mean():.2g} {after.max():.2g}")
        for found in (first, after):
            assert found.mean() < mean
            assert found.max() < largest
        assert moved.mean() > 2 * max(first.mean(), after.mean()), "the steps must have moved the policy"

    asyncio.run(scenario())
