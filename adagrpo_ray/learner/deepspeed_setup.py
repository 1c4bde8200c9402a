"""Starts a learner rank: joins the process group, loads the policy, and wraps it in DeepSpeed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from adagrpo_ray.cluster.environment import keep_compiled
from adagrpo_ray.cluster.gpu_host import check_gpu_host
from adagrpo_ray.config.learner import Packing
from adagrpo_ray.config.tree import Config
from adagrpo_ray.learner.agreement import agreed_packing
from adagrpo_ray.learner.buffers import reduce_bucket
from adagrpo_ray.learner.cuda_memory import use_expandable_segments
from adagrpo_ray.learner.gather import init_method
from adagrpo_ray.learner.masters import Masters
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.attention import use_packing
from adagrpo_ray.model.liger import use_liger_kernels


@dataclass(frozen=True, eq=False)
class PreparedPolicy:
    """The policy on its device, in eval mode, with DeepSpeed's engine around it.

    `packing` is one with which its log-probabilities are those of the model itself. `notices` are for the user.
    """

    policy: Policy
    engine: Any
    trainable: tuple[torch.nn.Parameter, ...]
    device: torch.device
    packing: Packing
    notices: tuple[str, ...]


def prepare(model_path: str, config: Config, rank: int, world_size: int, master: tuple[str, int]) -> PreparedPolicy:
    """Join the process group at `master` (address, port), load the model, and wrap it in DeepSpeed's engine."""
    torch.manual_seed(config.run.seed)
    device = join_ranks(rank, world_size, master)
    divided = config.learner.zero_stage == 3
    peft_model = load_policy(model_path, config, deepspeed_config(config) if divided else None)
    model = peft_model.get_base_model()
    chosen = use_packing(model, config.learner.packing, config.model)
    without_liger = use_liger_kernels(peft_model) if config.learner.liger_kernels else None
    if config.learner.gradient_checkpointing:
        peft_model.enable_input_require_grads()
        peft_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def max_over_ranks(number: int) -> int:
        numbers = torch.tensor(number, device=device)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return int(numbers)

    # Under stage 3 each use of a layer gathers its weights from all ranks, so all must use the head equally often.
    together = divided and world_size > 1
    policy = Policy(
        peft_model,
        max_over_ranks if together else None,
        entropy_gradient=config.algorithm.loss.entropy_coef > 0.0,
    )
    named = policy.adapter_parameters()
    weights = {name: p.detach().to("cpu", torch.float32, copy=True).numpy() for name, p in named.items()}
    trainable = [p for p in policy.parameters() if p.requires_grad]
    engine = with_deepspeed(policy, trainable, config)
    Masters(engine, policy.adapter_parameters(), rank, world_size).begin(weights)
    policy.eval()
    packing = agreed_packing(model, lambda rows: policy(rows)[0], chosen, config)
    return PreparedPolicy(
        policy, engine, tuple(trainable), device, packing, () if without_liger is None else (without_liger,)
    )


def join_ranks(rank: int, world_size: int, master: tuple[str, int]) -> torch.device:
    """Join the process group at `master` (address, port); returns the device of this rank when all have joined."""
    keep_compiled()
    check_gpu_host()
    cuda = torch.cuda.is_available()
    if cuda:
        use_expandable_segments()
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.update(
        MASTER_ADDR=master[0],
        MASTER_PORT=str(master[1]),
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",  # Ray makes only the actor's own device visible
    )
    import deepspeed

    # DeepSpeed would run a compiler and query the device for each of its operators, to find the optional kernel for CPU
    # ranks on one machine. Gloo does not need it, and NCCL has none.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(
        dist_backend="nccl" if cuda else "gloo",
        verbose=False,
        init_method=init_method(*master),
        rank=rank,
        world_size=world_size,
    )
    return torch.device("cuda" if cuda else "cpu")


def deepspeed_config(config: Config, trained: int | None = None) -> dict[str, Any]:
    """The DeepSpeed configuration for these settings; `trained` is the number of trained parameters, if it is known."""
    s = config.learner
    # Torch's AdamW in one kernel: on CPU ranks the default took a fifth of an update of SmolLM2 on one group.
    kind = {"torch_adam": True, "fused": True}
    optimizer = {"lr": s.learning_rate, "betas": list(s.betas), "weight_decay": s.weight_decay, **kind}
    zero: dict[str, Any] = {"stage": s.zero_stage}
    if trained is not None:
        zero["reduce_bucket_size"] = reduce_bucket(trained)
    if s.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # accumulated outside of DeepSpeed, since batches differ in size
        "optimizer": {"type": "AdamW", "params": optimizer},
        "gradient_clipping": 0.0,  # off, since it gets clipped gradients; the default is 1
        "zero_optimization": zero,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }


def with_deepspeed(policy: torch.nn.Module, trainable: list[torch.nn.Parameter], config: Config) -> Any:
    """Wrap the policy in DeepSpeed's engine, which steps on the trainable parameters."""
    import deepspeed

    settings = deepspeed_config(config, sum(parameter.numel() for parameter in trainable))
    engine, *_ = deepspeed.initialize(model=policy, model_parameters=trainable, config=settings)
    # The gradients that it gets are the same on every rank. Above stage 0 this also gives each rank its part.
    engine.enable_backward_allreduce = config.learner.zero_stage > 0
    engine.zero_grad = engine.basic_optimizer.zero_grad  # its own visits each module of the model
    return engine


def free(engine: Any, policy: torch.nn.Module) -> None:
    """Free the memory of the weights; neither the engine nor the policy may be used afterwards."""
    engine.destroy()
    for parameter in policy.parameters():  # at stage 3 DeepSpeed (0.19) keeps references to them
        parameter.data = parameter.data.new_empty(0)
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor.data = parameter.ds_tensor.data.new_empty(0)
    torch.nn.functional.linear = torch._C._nn.linear  # stage 3 replaces it in the whole process
