"""Gradients of the adapter: summed in float32 over micro-batches and ranks, checked, and handed to DeepSpeed.

DeepSpeed gets one gradient for each update, whole and finite. It would add up in bfloat16 itself at stages 0 to 2
(DeepSpeed 0.19; stage 0 refuses `grad_accum_dtype`), and what it has begun to reduce cannot be dropped in the same way
at every stage.
"""

from __future__ import annotations

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
"""Inputs and result of the loss, in the order in which they are named as the cause of a gradient that is not finite."""


@dataclass(frozen=True)
class Reduced:
    """The gradient of an update over all micro-batches and ranks, the same on every rank.

    `gradients` are float32, one a parameter; `cause` names what was not finite (None: all was).
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
        """Add the gradients of a micro-batch, one a parameter; None for a parameter that was not used."""
        for total, gradient in zip(self._sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient)

    def note(self, values: Sequence[torch.Tensor | None]) -> None:
        """Note which of the tensors that CAUSES names are not finite."""
        for number, value in enumerate(values):
            if value is not None:
                self._counts[number] += (~torch.isfinite(value)).sum()

    def reduce(self, world_size: int) -> Reduced:
        """The sum over all ranks, in one all-reduce that all ranks call."""
        if world_size > 1:
            torch.distributed.all_reduce(self._flat)
        # In float32, as DeepSpeed's own norm: if its square overflows, Adam's second moment does too.
        norm = float(self._flat[: len(self._flat) - len(CAUSES)].norm())
        counts = self._counts.tolist()
        causes = [name for name, count in zip(CAUSES, counts, strict=True) if count != 0]  # NaN is not 0 either
        if not causes and not torch.isfinite(torch.tensor(norm)):
            causes = ["gradient"]
        return Reduced(self._sums, norm, causes[0] if causes else None)


class _HandOver(torch.autograd.Function):
    """A scalar of 0 whose gradient for each parameter is the one that is given."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[torch.Tensor], *parameters: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return torch.zeros((), device=gradients[0].device)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        return (None, *ctx.gradients)


def hand_over(engine: Any, parameters: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor]) -> None:
    """Give DeepSpeed the gradients of an update, which are the same on every rank, and let it step.

    It averages them over the ranks, clips them, and keeps its part of them, by the stage. They are rounded to the type
    of the parameters here, once.
    """
    import deepspeed

    rounded = [g.to(p.dtype) for g, p in zip(gradients, parameters, strict=True)]
    sharded = engine.zero_optimization_stage() == 3  # a parameter has its shape only while it is gathered
    with deepspeed.zero.GatheredParameters(list(parameters), enabled=sharded):
        given: torch.Tensor = _HandOver.apply(rounded, *parameters)  # type: ignore[no-untyped-call]
        engine.backward(given)
    engine.step()
