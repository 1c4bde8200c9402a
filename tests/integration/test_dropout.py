"""LoRA's dropout is on only in an update, and any other dropout is always off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.learner.dropout import UpdateMode, without_dropout
from adagrpo_ray.learner.layout import pad
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.types import TrainSample
from tests.support.engine_states import one_rank

CPU = torch.device("cpu")


def configure(*overrides: str) -> Config:
    settings = [
        *("model.lora.dropout=0.1", "learner.learning_rate=1e-3", "learner.warmup_ratio=0.0", "run.steps=4"),
        *("algorithm.num_iterations=1", "algorithm.num_mini_batches=1", "algorithm.loss.beta=0.04"),
    ]
    return Config.load("launch/configs/tiny-cpu.yaml", [*settings, *overrides])


def make_samples(high: int = 100) -> list[TrainSample]:
    rng = np.random.default_rng(0)
    return [
        TrainSample(
            prompt_token_ids=rng.integers(0, high, 5).astype(np.int32),
            token_ids=rng.integers(0, high, length).astype(np.int32),
            behaviour_logprobs=np.full(length, -4.0, np.float32),
            token_weights=np.full(length, 1 / 60, np.float32),
            advantage=float(rng.normal()),
        )
        for length in (12, 20, 9, 19)
    ]


def move(policy: Any) -> None:
    """Change the adapter, as if it had been trained for a while."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)


@pytest.mark.parametrize(
    "settings",
    [[], ["packing=packed"], ["gradient_checkpointing=true"], ["packing=packed", "gradient_checkpointing=true"]],
    ids=lambda settings: ",".join(settings) or "padded",
)
def test_importance_weights_are_1_if_the_engine_agrees(model_path: str, settings: list[str]) -> None:
    config = configure(*[f"learner.{setting}" for setting in settings])
    engine = one_rank(model_path, config)
    move(engine._policy)
    samples = [
        replace(sample, behaviour_logprobs=logprobs)
        for sample, logprobs in zip(make_samples(), engine.logprobs(tuple(make_samples())), strict=True)
    ]
    (batch,) = pack_batches(1, samples, 1, 60, engine.packing)
    report = engine.train(batch)
    assert report.first is not None
    weights, difference = report.first.statistics.importance_ratio, report.first.statistics.logp_difference
    assert weights.count == 60
    assert (weights.minimum, weights.maximum) == pytest.approx((1.0, 1.0), abs=1e-4)
    assert difference.maximum < 1e-4
    ratios = report.first.statistics.ratio
    assert ratios.maximum - ratios.minimum > 1e-2  # the policy's own pass drops activations


def test_without_dropout_the_first_ratios_are_1_without_an_additional_pass(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []
    forward = Policy.forward
    monkeypatch.setattr(
        Policy, "forward", lambda self, rows: (passes.append(torch.is_grad_enabled()), forward(self, rows))[1]
    )
    for dropout, wanted in (("0.0", [True]), ("0.1", [False, True])):
        config = configure(f"model.lora.dropout={dropout}", "algorithm.loss.beta=0.0", "algorithm.num_iterations=2")
        engine = one_rank(model_path, config)
        move(engine._policy)
        passes.clear()
        report = engine.train(pack_batches(1, make_samples(), 1, 1000, passes=2)[0])
        assert passes == [*wanted, True]  # two updates
        assert report.first is not None
        assert (report.first.statistics.ratio.minimum == 1.0) is (dropout == "0.0")


def test_the_reference_has_no_dropout_and_restores_the_modes(model_path: str) -> None:
    policy = Policy(load_policy(model_path, configure()))
    UpdateMode(policy).begin()
    modes = [module.training for module in policy.modules()]
    assert 0 < sum(modes) < len(modes)
    rows = pad(make_samples(), CPU)
    with policy.reference():
        torch.testing.assert_close(policy(rows)[0], policy(rows)[0], rtol=0, atol=0)
    assert [module.training for module in policy.modules()] == modes


def test_lora_dropout_is_on_in_an_update(model_path: str) -> None:
    policy = Policy(load_policy(model_path, configure()))
    move(policy)
    mode = UpdateMode(policy)
    mode.begin()
    assert mode.drops
    rows = pad(make_samples(), CPU)
    with torch.no_grad():
        assert not torch.equal(policy(rows)[0], policy(rows)[0])
        with without_dropout(policy):
            assert torch.equal(policy(rows)[0], policy(rows)[0])


def gpt2(**dropout: float) -> Any:
    from transformers import GPT2Config

    return GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, **dropout)


def opt(**dropout: float) -> Any:
    from transformers import OPTConfig

    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return OPTConfig(vocab_size=64, max_position_embeddings=64, word_embed_proj_dim=32, **sizes, **dropout)


def llama(**dropout: float) -> Any:
    from transformers import LlamaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=64, **sizes, **dropout)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("config", "targets"),
    [
        (gpt2(resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5), None),
        (opt(dropout=0.5, attention_dropout=0.5, layerdrop=0.5), "[q_proj,v_proj,fc1]"),  # also in its layers' forward
        (llama(attention_dropout=0.5), "[q_proj,v_proj,up_proj]"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_the_base_models_own_dropout_is_off_in_an_update(
    config: Any, targets: str | None, checkpointing: bool, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    names = ["c_attn"] if targets is None else targets.strip("[]").split(",")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_dropout=0.0, target_modules=names))
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(model)
    rows = pad(make_samples(high=64), CPU)
    policy.train()
    assert not torch.equal(policy(rows)[0], policy(rows)[0])  # it would be on
    mode = UpdateMode(policy)
    mode.begin()
    assert not mode.drops
    logprobs = policy(rows)[0]
    with torch.no_grad(), without_dropout(policy):
        torch.testing.assert_close(policy(rows)[0], logprobs.detach(), rtol=0, atol=1e-6)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(logprobs.sum(), parameters, allow_unused=True)
    with without_dropout(policy):
        plain = torch.autograd.grad(policy(rows)[0].sum(), parameters, allow_unused=True)
    assert any(g is not None and bool(g.any()) for g in gradients)
    for one, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_are_checkpointed_only_in_an_update(
    model_path: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(f"learner.gradient_checkpointing={checkpointing}")
    engine = one_rank(model_path, config)
    layers = [m for m in engine._policy.modules() if type(m).__name__.endswith("DecoderLayer")]
    assert layers
    calls: list[Any] = []
    for layer in layers:
        if checkpointing:
            inner = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = lambda *a, inner=inner, **k: (calls.append(1), inner(*a, **k))[1]
    engine.logprobs(tuple(make_samples()))
    assert calls == []
    engine.train(pack_batches(1, make_samples(), 1, 1000)[0])
    assert len(calls) == (len(layers) if checkpointing else 0)
