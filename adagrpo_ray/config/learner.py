"""Settings of the learner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from adagrpo_ray.config.section import Amount, Decay, PositiveInt, Resources, Section, Share

Packing = Literal["padded", "packed", "shared"]
"""How the samples of a micro-batch lie in the model's input."""


class LearnerSettings(Section):
    """The DeepSpeed learner."""

    ranks: PositiveInt = Field(1, description="learner actors, one a rank")
    cpus: Amount = Field(1.0, description="CPUs that Ray reserves for one rank")
    resources: Resources = Field({}, description="custom Ray resources of one rank: names of its nodes' kind")
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="what DeepSpeed shards over the ranks")
    learning_rate: float = Field(1e-5, gt=0.0, le=1.0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0.0, description="AdamW's weight decay")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's moment decays")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="decay after the warm-up")
    warmup_ratio: Share = Field(0.1, description="share of the steps in which the learning rate rises to its peak")
    max_grad_norm: float = Field(1.0, gt=0.0, description="largest norm of the gradient")
    max_skipped_updates: PositiveInt | None = Field(
        3,
        description="updates skipped in a row, because a loss, log-probability or gradient was not finite, that end "
        "the run; 1: the first one does; null: the run continues whatever is skipped",
    )
    micro_batch_tokens: PositiveInt = Field(16384, description="most tokens, padding included, of a micro-batch")
    packing: Packing | None = Field(
        None,
        description="samples of a micro-batch in padded rows, packed in one row, or shared: in one row with each "
        "prompt once; null: packed with flash-attention, else shared if the model can",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    offload_optimizer: bool = Field(False, description="keep optimizer states and float32 weights in host memory")

    def conflicts(self) -> Iterator[str]:
        """Weights that a step of AdamW takes away, and a part of ZeRO without ZeRO."""
        if self.learning_rate * self.weight_decay >= 1.0:
            yield (
                f"learner.weight_decay={self.weight_decay} times learner.learning_rate={self.learning_rate} is 1 or "
                "more: one step of AdamW takes away the whole weight; lower one of them"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            yield (
                "learner.offload_optimizer=true is a part of ZeRO, which learner.zero_stage=0 turns off; set "
                "learner.zero_stage to 1, 2 or 3, or leave the optimizer where it is"
            )

    def packing_with(self, flash: bool) -> Packing:
        """How the samples of a micro-batch lie, given whether flash-attention runs here, if the model can share.

        Without flash-attention a packed row takes a mask of [S x S] and computes attention between samples for nothing.
        """
        return self.packing or ("packed" if flash else "shared")
