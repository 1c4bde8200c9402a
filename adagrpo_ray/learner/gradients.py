"""Gradients of the adapter: summed in float32 over micro-batches and ranks, checked, clipped, and handed to DeepSpeed.

DeepSpeed gets one whole and finite gradient for each update, for two reasons. At stages 0 to 2 it would accumulate in
bfloat16 (DeepSpeed 0.19; stage 0 refuses `grad_accum_dtype`). And a gradient that it has begun to reduce cannot be
dropped in the same way at every stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

CAUSES = (
    "policy log-probabilities",
    "old log-probabilities",
    "behaviour log-probabilities",
    "reference log-probabilities",
    "advantages",
    "loss",
)
"""Inputs and result of the loss, in the order in which they are reported as the cause of a skipped update."""


@dataclass(frozen=True)
class Reduced:
    """The gradient of an update over all micro-batches and ranks, the same on every rank.

    - `gradients`: float32, one for each parameter, clipped.
    - `norm`: the norm of all gradients together, before they are clipped.
    - `cause`: the first of CAUSES that has a number that is not finite, or "gradient"; None if all are finite.
    """

    gradients: tuple[torch.Tensor, ...]
    norm: float
    cause: str | None


class GradientSum:
    """The float32 sum of the gradients of one update: 4 bytes for each parameter of the adapter."""

    def __init__(self, shapes: Sequence[torch.Size], device: torch.device) -> None:
        sizes = [shape.numel() for shape in shapes]
        self._flat = torch.zeros(sum(sizes) + len(CAUSES), dtype=torch.float32, device=device)
        *parts, self._counts = torch.split(self._flat, [*sizes, len(CAUSES)])
        self._sums = tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    def add(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Add the gradients of a micro-batch, one for each parameter; None for a parameter that was not used."""
        for total, gradient in zip(self._sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient)

    def note(self, values: Sequence[torch.Tensor | None]) -> None:
        """Count the numbers that are not finite in the tensors that CAUSES names."""
        for number, value in enumerate(values):
            if value is not None:
                self._counts[number] += (~torch.isfinite(value)).sum()

    def reduce(self, world_size: int, max_norm: float = math.inf) -> Reduced:
        """Sum over all ranks, with one all-reduce, and clip to `max_norm`; all ranks call this together."""
        if world_size > 1:
            torch.distributed.all_reduce(self._flat)
        # In float32, like DeepSpeed's own norm: if its square overflows, Adam's second moment does, too.
        norm = float(self._flat[: len(self._flat) - len(CAUSES)].norm())
        counts = self._counts.tolist()
        causes = [name for name, count in zip(CAUSES, counts, strict=True) if count != 0]  # NaN is not 0 either
        if not causes and not math.isfinite(norm):
            causes = ["gradient"]
        if not causes and norm > max_norm:
            self._flat *= max_norm / norm
        return Reduced(self._sums, norm, causes[0] if causes else None)


class _HandOver(torch.autograd.Function):
    """A scalar 0 whose gradients for the parameters are the given ones."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[torch.Tensor], *parameters: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return torch.zeros((), device=gradients[0].device)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        return (None, *ctx.gradients)


def hand_over(engine: Any, parameters: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor]) -> None:
    """Pass the gradients of an update, which are the same on every rank, to DeepSpeed, and make its optimizer step.

    At a ZeRO stage above 0 DeepSpeed averages them over the ranks and keeps its part of them. They are rounded to the
    type of the parameters here, once.
    """
    import deepspeed

    rounded = [g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)]
    sharded = engine.zero_optimization_stage() == 3  # a parameter has its shape only while it is gathered
    with deepspeed.zero.GatheredParameters(list(parameters), enabled=sharded):
        given: torch.Tensor = _HandOver.apply(rounded, *parameters)  # type: ignore[no-untyped-call]
        engine.backward(given)
    engine.step()
