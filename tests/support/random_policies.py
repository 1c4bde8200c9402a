"""Policies of random weights: small ones, and ones of a real shape without memory for their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from adagrpo_ray.learner.policy import Policy

SMALL: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_policy(
    kind: str,
    sizes: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    dropout: float = 0.0,
) -> Policy:
    """A policy of Transformers' configuration class `kind`, whose adapter of rank 16 has an effect."""
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    with torch.device(device):
        config = getattr(transformers, kind)(**sizes)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=dropout, target_modules=TARGETS)
        policy = Policy(get_peft_model(model, lora, autocast_adapter_dtype=False)).to(dtype)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
    return policy.eval()


def checkpoint_activations(policy: Policy) -> None:
    """As the learner does with `learner.gradient_checkpointing`."""
    policy.peft_model.enable_input_require_grads()
    policy.peft_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
