"""The state of a learner engine, for checkpoints, and checks that it is finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo_ray.errors import CheckpointError, DivergedError


@dataclass(frozen=True, eq=False)
class EngineState:
    """The state that the next optimizer step depends on, apart from the batch.

    - `weights`, `moments`: as in `Masters.read`.
    - `random`: the states of torch's generators, as "cpu.RANK" and "cuda.RANK".
    - `optimizer_steps`: number of steps of Adam.
    - `skipped_in_a_row`: number of skipped updates since the last batch of which none was skipped.
    """

    weights: dict[str, NDArray[Any]]
    moments: dict[str, NDArray[Any]]
    random: dict[str, NDArray[Any]]
    optimizer_steps: int
    skipped_in_a_row: int

    def check_finite(self) -> None:
        """Raise CheckpointError if a weight or a moment is not finite."""
        for name, values in (*self.weights.items(), *self.moments.items()):
            if not np.isfinite(values).all():
                raise CheckpointError(
                    f"{name} of the checkpoint has numbers that are not finite; use an earlier checkpoint"
                )


def check_adapter(tensors: Mapping[str, torch.Tensor], step: int, rate: float) -> None:
    """Raise DivergedError if a weight of the adapter is not finite after `step`; `rate` is the learning rate set."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise DivergedError(
                f"after step {step} weights of the adapter are not finite (first: {name}); lower "
                f"learner.learning_rate={rate}"
            )


def read_generators(rank: int, world_size: int, device: torch.device) -> dict[str, NDArray[Any]]:
    """Gather the states of the generators of all ranks; every rank calls this."""
    own = {f"cpu.{rank}": torch.get_rng_state().numpy()}
    if device.type == "cuda":
        own[f"cuda.{rank}"] = torch.cuda.get_rng_state().numpy()
    every: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(every, own)
    return {name: state for one in every for name, state in one.items()}


def write_generators(random: Mapping[str, NDArray[Any]], rank: int, device: torch.device) -> None:
    """Set the generators of this rank to their states in `random`; a rank without states there keeps its own."""
    cpu, cuda = (random.get(f"{kind}.{rank}") for kind in ("cpu", "cuda"))
    if cpu is not None:
        torch.set_rng_state(torch.tensor(cpu))
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(torch.tensor(cuda))
