"""The ways in which TRL can generate, for trl_baseline.py: each gives its GRPOConfig arguments beside `common`.

Not among them: vLLM in a server, for which TRL's trainer has to be on a CUDA device (`VLLMClient.init_communicator`
raises NotImplementedError elsewhere), and Liger's kernels, which are Triton's.
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
    """GRPOConfig's arguments for these settings: one generation batch, one micro-batch and one update a step."""
    a, s = config.algorithm, config.learner
    return {
        "output_dir": output,
        "use_cpu": not torch.cuda.is_available(),
        "seed": config.run.seed,
        "max_steps": config.run.steps,
        "per_device_train_batch_size": a.prompts_per_step * a.group_size,
        "num_generations": a.group_size,
        "num_iterations": 1,
        "shuffle_dataset": False,  # the rows are in our order already
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
        "max_grad_norm": s.max_grad_norm,
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
    """What both of TRL's vLLM modes share; the importance weights are those of our loss."""
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
    """transformers' generate on all completions at once, on one core."""
    torch.set_num_threads(1)
    return {}


def generate_2_threads(config: Config, inputs: Inputs) -> Common:
    """The same on two cores."""
    torch.set_num_threads(2)
    return {}


def continuous_batching(config: Config, inputs: Inputs) -> Common:
    """transformers' continuous batching (once `use_transformers_paged`), with a cache that just holds all completions.

    By itself it would take half of the machine's memory. Without flash attention it attends over the whole cache
    through a mask, so that a small one is also the fastest.
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

    vLLM's CPU linear layers pack their weights for oneDNN and leave an empty tensor behind
    (`dispatch_cpu_unquantized_gemm(remove_weight=True)`), and TRL's `sync_weights` loads into that very tensor
    (`model.load_weights`, not `reload_weights`): so the first sync cannot work there.
    """
    # A number of GiB for vLLM's CPU build; without it, vLLM takes a share of the machine's memory.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(config.rollout.kv_cache_gib or 1))
    return with_vllm(config, inputs) | {"vllm_mode": "colocate"}


def vllm_colocate_unpacked(config: Config, inputs: Inputs) -> Common:
    """The same with vLLM patched not to pack weights: nothing that TRL offers, but what it could do on CPUs."""
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
