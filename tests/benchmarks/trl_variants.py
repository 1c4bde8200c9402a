"""TRL's ways to generate, for trl_baseline.py: each returns its GRPOConfig arguments in addition to `common`.

Not included are vLLM in a server, for which TRL's trainer needs a CUDA device (`VLLMClient.init_communicator` raises
NotImplementedError without one), and Liger's kernels, which need Triton.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch

from adagrpo_ray.config import Config
from adagrpo_ray.training.preflight import Inputs

Common = dict[str, Any]  # the GRPOConfig arguments that all variants share


def common(config: Config, output: str) -> Common:
    """GRPOConfig's arguments for these settings: each step has one generation batch, one micro-batch and one update."""
    a, s = config.algorithm, config.learner
    return {
        "output_dir": output,
        "use_cpu": not torch.cuda.is_available(),
        "seed": config.run.seed,
        "max_steps": config.run.steps,
        "per_device_train_batch_size": a.prompts_per_step * a.group_size,
        "num_generations": a.group_size,
        "num_iterations": 1,
        "shuffle_dataset": False,  # the rows are already in our order
        "max_completion_length": config.rollout.max_new_tokens,
        "temperature": a.sampling.temperature,
        "top_p": a.sampling.top_p,
        "top_k": a.sampling.top_k,
        "min_p": a.sampling.min_p or None,
        "repetition_penalty": a.sampling.repetition_penalty,
        "beta": 0.0,
        "loss_type": a.loss.kind,
        "epsilon": a.loss.epsilon,
        "epsilon_high": a.loss.epsilon_high,
        "learning_rate": s.learning_rate,
        "weight_decay": s.weight_decay,
        "adam_beta1": s.betas[0],
        "adam_beta2": s.betas[1],
        "max_grad_norm": config.learner.max_grad_norm,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(s.schedule, s.schedule),
        "warmup_steps": round(s.warmup_ratio * config.run.steps),
        "bf16": config.model.dtype == "bfloat16",
        "gradient_checkpointing": s.gradient_checkpointing,
        "logging_steps": config.run.steps,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def with_vllm(config: Config, inputs: Inputs) -> Common:
    """The arguments of all vLLM modes; importance weights are those of our loss."""
    loss = config.algorithm.loss
    correction: Common = {"vllm_importance_sampling_correction": loss.correction != "none"}
    if loss.correction != "none":
        correction |= {
            "vllm_importance_sampling_mode": f"{loss.correction}_{loss.correction_mode}",
            "vllm_importance_sampling_clip_min": loss.correction_floor,
            "vllm_importance_sampling_clip_max": loss.correction_cap,
        }
    return {"use_vllm": True, "vllm_max_model_length": inputs.max_model_len, **correction}


def generate_1_thread(config: Config, inputs: Inputs) -> Common:
    """transformers' generate for all completions at once, on one core."""
    torch.set_num_threads(1)
    return {}


def generate_2_threads(config: Config, inputs: Inputs) -> Common:
    """transformers' generate for all completions at once, on two cores."""
    torch.set_num_threads(2)
    return {}


def continuous_batching(config: Config, inputs: Inputs) -> Common:
    """transformers' continuous batching (earlier: `use_transformers_paged`), with a cache of minimal size.

    By default the cache would take half of the machine's memory. Without flash attention, attention is computed over
    the whole cache with a mask, so that a small cache is also the fastest.
    """
    completions, page = config.algorithm.prompts_per_step * config.algorithm.group_size, 64
    longest = max(len(p.token_ids) for p in inputs.prompts.train)
    cache = {
        "page_size": page,
        "num_blocks": completions * math.ceil(inputs.max_model_len / page),
        "max_batch_tokens": completions * longest,
    }
    return {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": cache}


def vllm_colocate(config: Config, inputs: Inputs) -> Common:
    """vLLM in the trainer's process.

    It fails at the first sync: vLLM's CPU linear layers pack their weights for oneDNN and leave an empty tensor
    (`dispatch_cpu_unquantized_gemm(remove_weight=True)`), into which TRL's `sync_weights` loads the weights
    (`model.load_weights` instead of `reload_weights`).
    """
    # GiB for the cache of vLLM's CPU build; without it vLLM takes a share of the machine's memory.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(config.rollout.kv_cache_gib or 1))
    return with_vllm(config, inputs) | {"vllm_mode": "colocate"}


def vllm_colocate_unpacked(config: Config, inputs: Inputs) -> Common:
    """vLLM in the trainer's process, patched not to pack weights: not offered by TRL, but possible on CPUs."""
    from vllm.model_executor.layers import utils

    def keep(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep
    return vllm_colocate(config, inputs)


Variant = Callable[[Config, Inputs], Common]
VARIANTS: dict[str, Variant] = {
    f.__name__: f
    for f in (
        generate_1_thread,
        generate_2_threads,
        continuous_batching,
        vllm_colocate,
        vllm_colocate_unpacked,
    )
}
