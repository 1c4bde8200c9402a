"""Settings of the learner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from adagrpo_ray.config.section import Amount, Decay, PositiveInt, Resources, Section, Share

Packing = Literal["padded", "packed", "shared"]
"""Layout of the samples of a micro-batch in the input of the model."""


class LearnerSettings(Section):
    """The DeepSpeed learner."""

    ranks: PositiveInt = Field(1, description="learner actors, one per rank")
    cpus: Amount = Field(1.0, description="CPUs that Ray reserves for one rank")
    resources: Resources = Field({}, description="custom Ray resources of one rank, which select its nodes")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="ZeRO stage: 1 shards optimizer states over the ranks, 2 gradients too, 3 weights too"
    )
    learning_rate: float = Field(1e-5, gt=0.0, le=1.0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0.0, description="weight decay of AdamW")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="decay rates of AdamW's moments")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="decay after the warm-up")
    warmup_ratio: Share = Field(0.1, description="share of the steps in which the learning rate rises to its peak")
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradients are clipped to this norm")
    max_skipped_updates: PositiveInt | None = Field(
        3,
        description="end the run after this many skipped updates in a row; an update is skipped if a loss, "
        "log-probability or gradient is not finite; null: never",
    )
    micro_batch_tokens: PositiveInt = Field(16384, description="most tokens of a micro-batch, padding included")
    packing: Packing | None = Field(
        None,
        description="samples of a micro-batch in padded rows, packed in one row, or shared (one row with each prompt "
        "once); null: packed if a flash kernel runs, else shared if the model can",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    offload_optimizer: bool = Field(False, description="keep optimizer states and float32 weights in host memory")
    liger_kernels: bool = Field(
        False,
        description="compute RMSNorm and SwiGLU with Liger's Triton kernels, which keep fewer activations; without "
        "a GPU or liger-kernel the run goes without them and reports the reason",
    )

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts of the weight decay with the learning rate, and of offloading with ZeRO stage 0."""
        if self.learning_rate * self.weight_decay >= 1.0:
            yield (
                f"learner.weight_decay={self.weight_decay} times learner.learning_rate={self.learning_rate} is 1 or "
                "more, so one step of AdamW removes the whole weight; lower one of them"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            yield (
                "learner.offload_optimizer=true is a part of ZeRO, which learner.zero_stage=0 turns off; set "
                "learner.zero_stage to 1, 2 or 3, or learner.offload_optimizer to false"
            )

    def packing_with(self, flash: bool) -> Packing:
        """Return the layout of a micro-batch for a model that can have all layouts; `flash`: a flash kernel runs here.

        Without one a packed row needs a mask of [S x S], and attention between samples is wasted.
        """
        return self.packing or ("packed" if flash else "shared")
