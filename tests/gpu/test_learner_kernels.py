"""Attention by CUDA's own kernels in the learner, which no CPU can run; skipped if there is no CUDA device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.learner import agreement
from adagrpo_ray.learner.layout import join, pad
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.model.attention import FLEX, use_packing
from adagrpo_ray.model.packed_attention import kernel_runs, use_varlen
from tests.support.batches import make_samples
from tests.support.random_policies import SMALL, random_policy

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(900),
]

CUDA = torch.device("cuda")
FUSED = {f"aten::_{name}_attention_forward" for name in ("flash", "cudnn", "efficient")}
SAMPLES = make_samples(7)
SIZES = {**SMALL, "head_dim": 64}
KINDS = {
    "Qwen3Config": SIZES,
    "MistralConfig": {**SIZES, "sliding_window": 5},
    "Gemma3TextConfig": {**SIZES, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
}


def on_gpu(kind: str, dtype: torch.dtype) -> tuple[Policy, Any]:
    policy = random_policy(kind, KINDS[kind], dtype).to(CUDA)
    return policy, policy.peft_model.get_base_model()


def with_gradients(policy: Policy, logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probabilities, and the gradient of their sum by all parameters, as one vector in float32."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    found = torch.autograd.grad(logprobs.sum(), trained)
    return logprobs.detach(), torch.cat([gradient.flatten().float() for gradient in found])


def own(policy: Policy, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of each sequence alone by SDPA, and their gradient."""
    return with_gradients(policy, torch.cat([agreement._own(model, sample, CUDA) for sample in SAMPLES]))


def assert_alike(got: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor], by: float) -> None:
    assert float((got[0] - wanted[0]).abs().mean()) < by
    assert float((got[1] - wanted[1]).norm() / wanted[1].norm()) < by


@pytest.mark.parametrize("kind", KINDS)
def test_rows_packed_by_torchs_flash_kernel_equal_sequences_alone(kind: str) -> None:
    policy, model = on_gpu(kind, torch.bfloat16)
    wanted = own(policy, model)
    assert use_varlen(model)
    assert_alike(with_gradients(policy, policy(join(SAMPLES, CUDA))[0]), wanted, by=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_packed_by_flex_attention_equal_sequences_alone(kind: str) -> None:
    policy, model = on_gpu(kind, torch.float32)
    wanted = own(policy, model)
    model.set_attn_implementation(FLEX)
    assert_alike(with_gradients(policy, policy(join(SAMPLES, CUDA))[0]), wanted, by=1e-3)


@pytest.mark.parametrize(
    ("dtype", "kernels"),
    [
        ("bfloat16", {"aten::_flash_attention_forward", "aten::_cudnn_attention_forward"}),
        ("float32", {"aten::_efficient_attention_forward"}),
    ],
)
def test_padded_rows_run_a_fused_kernel(dtype: str, kernels: set[str]) -> None:
    """The math kernel would keep a matrix of [S x S] for each head."""
    policy, model = on_gpu("Qwen3Config", getattr(torch, dtype))
    settings = Config.load(None, ["model.path=here", f"model.dtype={dtype}"]).model
    assert use_packing(model, "padded", settings) == "padded"
    with torch.profiler.profile() as profile:
        with_gradients(policy, policy(pad(SAMPLES, CUDA))[0])
    names = {event.key for event in profile.key_averages()}
    assert names & kernels
    assert "aten::_scaled_dot_product_attention_math" not in names
    assert not names & (FUSED - kernels)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_torchs_flash_kernel_runs_for_the_heads_of_common_models(size: int) -> None:
    assert kernel_runs(16, 8, size)
