"""Settings of the rollout actors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from adagrpo_ray.config.section import Amount, Count, Gibibytes, PositiveInt, Resources, Seconds, Section


class RolloutSettings(Section):
    """The vLLM rollout actors."""

    actors: PositiveInt = Field(1, description="rollout actors that a run starts with")
    max_actors: PositiveInt | None = Field(
        None, description="most rollout actors, added as nodes join the cluster; null: rollout.actors"
    )
    max_restarts: Count = Field(
        10,
        description="number of dead or hung rollout actors that a run replaces; a prompt that kills them "
        "takes four before it is given up, so with fewer than 4 it may end the run",
    )
    tensor_parallel_size: PositiveInt = Field(1, description="GPUs of one rollout actor")
    cpus: Amount = Field(1.0, description="CPUs that Ray reserves for one rollout actor")
    resources: Resources = Field({}, description="custom Ray resources of one rollout actor, which select its nodes")
    max_new_tokens: PositiveInt = Field(256, description="most tokens of a completion")
    max_model_len: PositiveInt | None = Field(None, description="most tokens of prompt and completion; null: as needed")
    max_num_seqs: PositiveInt = Field(128, description="sequences that one actor decodes at a time")
    max_num_batched_tokens: PositiveInt | None = Field(
        None,
        description="tokens that an engine computes in one step, of prompts and completions; null: 8192 on CPUs, and "
        "2048, the default of vLLM, on GPUs",
    )
    kv_cache_gib: Gibibytes | None = Field(None, description="size of the KV cache; null: by gpu_memory_utilization")
    gpu_memory_utilization: float = Field(
        0.45, gt=0.0, le=1.0, description="share of a GPU's memory that vLLM may take"
    )
    sleep: bool | None = Field(
        None,
        description="on one shared GPU: vLLM frees its memory while the learner trains; null: if both do not fit and "
        "the run starts Ray itself",
    )
    enforce_eager: bool = Field(False, description="no compilation: starts faster, generates slower")
    lora_mode: Literal["adapter", "merged"] = Field(
        "adapter", description="serve the adapter with vLLM's LoRA kernels, or merge it into the base weights"
    )
    start_timeout_s: Seconds = Field(600.0, description="seconds that a rollout actor may take to start")
    request_timeout_s: Seconds = Field(
        1800.0, description="seconds that an actor may take to finish the next of its requests; not those in a queue"
    )
    stall_timeout_s: Seconds = Field(
        300.0, description="seconds without an engine step, or in loading weights, after which an engine counts as hung"
    )

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts of the number of actors, of the lengths, and of the tokens of one engine step."""
        if self.max_actors is not None and self.max_actors < self.actors:
            yield (
                f"rollout.max_actors={self.max_actors} is less than rollout.actors={self.actors}; raise the first or "
                "lower the second"
            )
        if self.max_model_len is not None and self.max_model_len <= self.max_new_tokens:
            yield (
                f"rollout.max_model_len={self.max_model_len} leaves no room for a prompt next to "
                f"rollout.max_new_tokens={self.max_new_tokens}; raise the first or lower the second"
            )
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_num_seqs:
            yield (
                f"rollout.max_num_batched_tokens={self.max_num_batched_tokens} is less than one token for each of "
                f"rollout.max_num_seqs={self.max_num_seqs} sequences; raise the first or lower the second"
            )
