"""Settings of the base model and its adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from adagrpo_ray.config.section import Decay, Location, Section


class LoraSettings(Section):
    """The adapter that is trained."""

    r: Literal[1, 8, 16, 32, 64, 128, 256] = Field(16, description="rank of the adapter; vLLM serves these ranks")
    alpha: float = Field(32.0, gt=0.0, description="scale of the adapter is alpha / r")
    dropout: Decay = Field(0.0, description="dropout before the adapter, in updates only")
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers that get an adapter",
    )


class ModelSettings(Section):
    """The base model and its adapter."""

    path: Location = Field(
        "tiny",
        description="'tiny' (built on first use), a folder, a .gguf file (also package:NAME/file.gguf), or a Hub name",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="type of the base weights, in rollout actors and learner"
    )
    trust_remote_code: bool = Field(False, description="run Python code that is part of the model")
    adapter: Location | None = Field(None, description="PEFT adapter folder to continue from; null: a new adapter")
    lora: LoraSettings = Field(LoraSettings(), description="the adapter that is trained")
