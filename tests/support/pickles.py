"""Pickles that create a file when they are loaded."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


PICKLED = (
    *("pytorch_model.bin", "model.bin", "weights.pt", "consolidated.00.pth", "adapter_model.bin", "training_args.bin"),
    *("tokenizer.pkl", "optimizer.pt", "rng_state.pth"),
)


def plant(folder: Path, marker: Path) -> None:
    """Write pickles into `folder`, plain ones and one of torch, under names that a loader might read."""
    for name in PICKLED:
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    torch.save({"weight": Bomb(marker)}, folder / "pytorch_model.bin")
