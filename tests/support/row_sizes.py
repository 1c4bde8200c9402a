"""The sizes of a micro-batch, counted from its tensors, for the memory estimate."""

from __future__ import annotations

from adagrpo_ray.learner.activations import MicroBatch
from adagrpo_ray.learner.layout import Rows


def sizes_of(rows: Rows) -> MicroBatch:
    """The sizes of rows; those of a packed row are of one without a mask."""
    blocks = [(group, some) for group in rows.inputs.get("shared", ()) for some in group.completions]
    return MicroBatch(
        tokens=rows.inputs["input_ids"].numel(),
        pairs=sum(some.mask.numel() for _, some in blocks),
        copied=sum(len(some.tokens) * group.prompt for group, some in blocks),
        padding=sum(some.tokens.numel() - len(some.kept) for _, some in blocks),
    )
