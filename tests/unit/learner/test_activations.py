"""The estimated memory of an update, against the bytes of its tensors: the real policy on meta tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.learner.activations import layer_bytes, shared_bytes, transient_bytes
from adagrpo_ray.learner.dropout import UpdateMode
from adagrpo_ray.learner.layout import Rows
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.lora.peft_model import with_adapter
from adagrpo_ray.model.shape import Shape
from adagrpo_ray.training.estimate import learner_memory
from tests.support.allocations import Allocations, like_cuda
from tests.support.shapes import SHAPE

SHAPES = {
    "0.6B": replace(SHAPE, hidden=1024, intermediate=3072),
    "1.7B": SHAPE,
    "4B": replace(SHAPE, hidden=2560, intermediate=9728, heads=32, layers=36),
}
"""The shapes of Qwen3 by their names."""
COMPLETION = 8192
TOLERANCE = 0.04


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    like_cuda(monkeypatch)


def tracked(shape: Shape, config: Config, tokens: int) -> int:
    """The most bytes that tensors of one update have together, without those of the weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        base = Qwen3ForCausalLM._from_config(sizes, attn_implementation="sdpa", dtype=torch.bfloat16)
        model = with_adapter(base, config.model).to(torch.bfloat16)
        if config.learner.gradient_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy = Policy(model)
        UpdateMode(policy).begin()
        row = {"input_ids": torch.zeros(1, tokens, dtype=torch.long)}
        rows = Rows(row, torch.arange(tokens - COMPLETION - 1, tokens - 1), torch.zeros(COMPLETION, dtype=torch.long))
        parameters = list(policy.parameters())
        with Allocations([*parameters, *policy.buffers()]) as allocations:
            weights = allocations.now
            logprobs, _ = policy(rows)
            torch.autograd.grad(logprobs.sum(), [p for p in parameters if p.requires_grad], allow_unused=True)
        return allocations.peak - weights


def configure(tokens: int, *overrides: str) -> Config:
    return Config.load(
        None,
        [
            f"learner.micro_batch_tokens={tokens}",
            f"rollout.max_new_tokens={COMPLETION}",
            "learner.packing=packed",
            *overrides,
        ],
    )


@pytest.mark.parametrize(
    ("name", "tokens", "layers", "settings", "worst"),
    [
        ("0.6B", 8592, 2, ["model.lora.dropout=0.1", "learner.gradient_checkpointing=true"], "logits"),
        ("1.7B", 16384, 2, ["model.lora.dropout=0.1", "learner.gradient_checkpointing=true"], "one layer"),
        ("1.7B", 16384, 2, ["learner.gradient_checkpointing=true"], "one layer"),
        ("1.7B", 8592, 4, ["model.lora.dropout=0.1"], "logits"),
        ("4B", 8592, 2, ["model.lora.dropout=0.1", "learner.gradient_checkpointing=true"], "one layer"),
    ],
)
def test_estimate_is_that_of_the_tensors_of_an_update(
    name: str, tokens: int, layers: int, settings: list[str], worst: str
) -> None:
    """Both phases of an update are the worst one in some case; a few layers stand for all, which are alike."""
    shape, config = replace(SHAPES[name], layers=layers), configure(tokens, *settings)
    estimate = learner_memory(shape, config, flash=True)
    assert worst in estimate.parts
    estimated = estimate.peak - estimate.idle
    assert estimated == pytest.approx(tracked(shape, config, tokens), rel=TOLERANCE)


ALL = tuple(SHAPE.linear)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Inputs of LoRA 2 x 2048 + 6144, query and output 2048 each, key and value 1024 each, MLP 3 x 6144, two bytes
        # each: 69,632; norms 2 x 2048 + 2048 + 1024, four bytes each: 28,672.
        ({}, 98_304),
        ({"masked": True}, 98_304 + 4096),  # key and value for all heads: 2 x 1024 more
        # Seven inputs of their own, 5 x 2048 + 2048 + 6144, of 2 + 1 bytes: 55,296 in place of 20,480.
        ({"dropped": ALL}, 133_120),
        ({"dropped": ("q_proj",)}, 98_304 - 20_480 + 3 * 2048),
        ({"liger": True}, 98_304 - 2 * 6144 - 2 * 2 * 2048),
    ],
)
def test_bytes_of_a_layer_match_numbers_by_hand(arguments: dict[str, object], expected: int) -> None:
    assert layer_bytes(SHAPE, 2, **arguments) == expected  # type: ignore[arg-type]


def test_other_bytes_of_a_layer_match_numbers_by_hand() -> None:
    assert transient_bytes(SHAPE, 2, dropped=True) == 2 * (3 * 2048 + 6144)
    assert transient_bytes(SHAPE, 2, dropped=False) == 2 * (2 * 6144 - 2048)
    assert shared_bytes(SHAPE, 2) == 9 * 2048 * 2
