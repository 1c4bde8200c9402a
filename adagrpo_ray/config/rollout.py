"""Settings of the rollout actors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from adagrpo_ray.config.section import Amount, Count, Gibibytes, PositiveInt, Resources, Seconds, Section


class RolloutSettings(Section):
    """The vLLM rollout actors."""

    actors: PositiveInt = Field(1, description="rollout actors that a run begins with")
    max_actors: PositiveInt | None = Field(
        None, description="rollout actors that a run may grow to as nodes join the cluster; null: rollout.actors"
    )
    max_restarts: Count = Field(10, description="rollout actors that a run replaces when they die or hang")
    tensor_parallel_size: PositiveInt = Field(1, description="GPUs of one rollout actor")
    cpus: Amount = Field(1.0, description="CPUs that Ray reserves for one rollout actor")
    resources: Resources = Field({}, description="custom Ray resources of one rollout actor: names of its nodes' kind")
    max_new_tokens: PositiveInt = Field(256, description="most tokens of a completion")
    max_model_len: PositiveInt | None = Field(None, description="most tokens of prompt and completion; null: as needed")
    max_num_seqs: PositiveInt = Field(128, description="sequences that one actor decodes at a time")
    kv_cache_gib: Gibibytes | None = Field(None, description="size of the KV cache; null: by gpu_memory_utilization")
    gpu_memory_utilization: float = Field(
        0.45, gt=0.0, le=1.0, description="share of a GPU's memory that vLLM may take"
    )
    sleep: bool | None = Field(
        None,
        description="on one shared GPU, vLLM leaves it while the learner trains; null: where both do not fit, "
        "on a Ray of our own",
    )
    enforce_eager: bool = Field(False, description="no compilation: starts faster, generates slower")
    lora_mode: Literal["adapter", "merged"] = Field(
        "adapter", description="LoRA served by vLLM's LoRA kernels, or merged into the base weights"
    )
    start_timeout_s: Seconds = Field(600.0, description="seconds that a rollout actor may take to start")
    request_timeout_s: Seconds = Field(1800.0, description="seconds that one request may take")
    stall_timeout_s: Seconds = Field(
        300.0, description="seconds after which an engine counts as hung: without a step, or in taking weights"
    )

    def conflicts(self) -> Iterator[str]:
        """Fewer actors than a run begins with, and sequences without room for a prompt."""
        if self.max_actors is not None and self.max_actors < self.actors:
            yield (
                f"rollout.max_actors={self.max_actors} is less than the rollout.actors={self.actors} that a run begins "
                "with; raise the first or lower the second"
            )
        if self.max_model_len is not None and self.max_model_len <= self.max_new_tokens:
            yield (
                f"rollout.max_model_len={self.max_model_len} leaves no room for a prompt beside "
                f"rollout.max_new_tokens={self.max_new_tokens}; raise the first or lower the second"
            )
