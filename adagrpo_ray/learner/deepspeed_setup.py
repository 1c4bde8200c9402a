"""Gathering the learner ranks, and DeepSpeed around their policy."""

from __future__ import annotations

import os
from typing import Any

import torch

from adagrpo_ray.config.tree import Config
from adagrpo_ray.learner.buffers import REDUCE_BUCKET
from adagrpo_ray.learner.gather import init_method


def join_ranks(rank: int, world_size: int, master: tuple[str, int]) -> torch.device:
    """Join the process group at `master` (address, port); returns the device of this rank when all are there."""
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.update(
        MASTER_ADDR=master[0],
        MASTER_PORT=str(master[1]),
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",  # Ray shows each actor its own device only
    )
    import deepspeed

    # An extra for several CPU ranks on one machine, compiled at first use; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if cuda else "gloo",
        verbose=False,
        init_method=init_method(*master),
        rank=rank,
        world_size=world_size,
    )
    return torch.device("cuda" if cuda else "cpu")


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's own configuration for these settings."""
    s = config.learner
    optimizer = {"lr": s.learning_rate, "betas": list(s.betas), "weight_decay": s.weight_decay, "torch_adam": True}
    zero: dict[str, Any] = {"stage": s.zero_stage, "reduce_bucket_size": REDUCE_BUCKET}
    if s.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the engine is told where a batch ends, since batches differ in size
        "optimizer": {"type": "AdamW", "params": optimizer},
        "gradient_clipping": s.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }


def with_deepspeed(policy: torch.nn.Module, trainable: list[torch.nn.Parameter], config: Config) -> Any:
    """DeepSpeed's engine around the policy, which steps on its trainable parameters."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=policy, model_parameters=trainable, config=deepspeed_config(config))
    return engine
