"""Bytes that one decoder layer keeps for its backward pass, counted on tensors without memory.

The kernels are CUDA's: their meta implementations return, and autograd keeps, tensors of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo_ray.learner.dropout import UpdateMode
from adagrpo_ray.learner.head import base_of
from adagrpo_ray.learner.layout import Rows, join, pad
from adagrpo_ray.model import packed_attention
from adagrpo_ray.types import TrainSample
from tests.support.allocations import fused_dropout
from tests.support.random_policies import SMALL, checkpoint_activations, random_policy

META = torch.device("meta")
ROWS, TOKENS = 4, 512
SHAPES = {
    "Qwen3-0.6B": {"hidden_size": 1024, "intermediate_size": 3072},
    "Qwen3-1.7B": {"hidden_size": 2048, "intermediate_size": 6144},
}
SIZES = {**SMALL, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
# Bytes of a token in bfloat16, by hand for 1.7 B (the inputs of LoRA's A, and of operations that are no projection):
#   norms: the input in float32, of both norms of the layer (2 x 8192), of queries (8192) and of keys (4096)     28,672
#   inputs of q, k and v (4096) and of gate and up (4096); those of o and down are counted below                  8,192
#   attention: queries (4096), keys and values (2048 each), output (4096)                                        12,288
#   MLP: gate, its activation, up, and their product (12288 each)                                                49,152
KEPT = {"Qwen3-0.6B": 61_440, "Qwen3-1.7B": 98_304}
# A x of seven targets (7 x 32), the scales of all norms (4 for each norm and head), and logsumexp (4 for each head).
SMALL_PARTS = 7 * 32 + 4 * (2 + 16 + 8) + 4 * 16
INPUT = {"Qwen3-0.6B": 2048, "Qwen3-1.7B": 4096}
"""Bytes of the input of a layer for one token."""


@pytest.fixture(autouse=True)
def flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention by the kernel that CUDA takes if there is no mask."""

    def attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, is_causal: bool = False, **named: Any
    ) -> Any:
        assert attn_mask is None
        assert is_causal
        assert named.get("enable_gqa")
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, 0.0, is_causal, False, scale=named["scale"])[0]

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", attention)
    monkeypatch.setattr(packed_attention, "kernel_runs", lambda *_: True)
    # It looks at the values of the positions, which do not exist.
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)


def rows_of(lay_out: Callable[..., Rows]) -> Rows:
    prompt, tokens = np.zeros(TOKENS // 4, np.int32), np.zeros(TOKENS - TOKENS // 4, np.int32)
    floats = np.zeros(len(tokens), np.float32)
    return lay_out([TrainSample(prompt, tokens, floats, floats, 0.0)] * ROWS, META)


def kept(
    shape: str, layers: int, lay_out: Callable[..., Rows], *, checkpointing: bool = False, dropout: float = 0.0
) -> int:
    """Bytes that the forward pass of the decoder keeps, without weights; a storage counts once."""
    sizes = {**SIZES, **SHAPES[shape], "num_hidden_layers": layers}
    policy = random_policy("Qwen3Config", sizes, torch.bfloat16, "meta", dropout)
    model = policy.peft_model.get_base_model()
    if lay_out is join:
        assert packed_attention.use_varlen(model)
    if checkpointing:
        checkpoint_activations(policy)
    UpdateMode(policy).begin()
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = base_of(model)[1](**rows_of(lay_out).inputs, use_cache=False)[0]
    assert hidden.requires_grad
    for weight in policy.parameters():
        found.pop(weight.untyped_storage()._cdata, None)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("lay_out", [pad, join])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_keeps_the_tensors_of_its_backward_pass(shape: str, lay_out: Callable[..., Rows]) -> None:
    one, two = (kept(shape, layers, lay_out) for layers in (1, 2))
    assert (two - one) / (ROWS * TOKENS) == pytest.approx(KEPT[shape] + SMALL_PARTS, abs=1)


@pytest.mark.parametrize("lay_out", [pad, join])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpointed_layer_keeps_its_input(shape: str, lay_out: Callable[..., Rows]) -> None:
    one, two = (kept(shape, layers, lay_out, checkpointing=True) for layers in (1, 2))
    assert two - one == INPUT[shape] * ROWS * TOKENS


@pytest.mark.parametrize("shape", SHAPES)
def test_at_stage_3_frozen_layers_keep_their_inputs_before_dropout(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's linear layer saves its input, even if the weight needs no gradient."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    monkeypatch.setattr("torch.nn.functional.dropout", fused_dropout)
    layer = []
    for linear in (torch._C._nn.linear, zero3_linear_wrap):
        monkeypatch.setattr("torch.nn.functional.linear", linear)
        one, two = (kept(shape, layers, pad, dropout=0.1) for layers in (1, 2))
        layer.append((two - one) / (ROWS * TOKENS))
    hidden, intermediate = SHAPES[shape]["hidden_size"], SHAPES[shape]["intermediate_size"]
    assert layer[1] - layer[0] == (2 * hidden + intermediate) * 2
