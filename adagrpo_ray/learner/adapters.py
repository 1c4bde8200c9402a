"""The LoRA adapter at a path, for all who use one that was trained: a folder in PEFT's layout, or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from adagrpo_ray.adapter import AdapterWeights, as_pairs, pack
from adagrpo_ray.config.tree import LoraSettings
from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.learner import checkpoint
from adagrpo_ray.model.folder import (
    ADAPTER_WEIGHTS,
    AdapterSettings,
    adapter_settings,
    read_adapter_folder,
)

RANKS: tuple[int, ...] = get_args(LoraSettings.model_fields["r"].annotation)
"""What vLLM's LoRA kernels can be set up for."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter in memory, its tensors keyed as in PEFT's files.

    `base` is the base model that it names, "" where it names none.
    """

    folder: Path
    tensors: dict[str, torch.Tensor]
    r: int
    alpha: float
    base: str

    @property
    def pairs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Module name of the base model -> (A [r, in], B [out, r])."""
        return as_pairs(self.tensors)

    def packed(self, version: int, dtype: str) -> AdapterWeights:
        """The same for engines, whose weights are of type `dtype`."""
        return pack(version, self.tensors, self.r, self.alpha, getattr(torch, dtype))


def weights_file(path: Path) -> Path:
    """The file that holds the weights of the adapter at `path`, or would."""
    return path / (checkpoint.WEIGHTS if checkpoint.is_checkpoint(path) else ADAPTER_WEIGHTS)


def read_settings(path: Path, setting: str = "adapter") -> AdapterSettings:
    """Rank, alpha and base model of the adapter at `path`, its weights unread; raises as `read_adapter`."""
    if not checkpoint.is_checkpoint(path):
        return read_adapter_folder(str(path), setting)
    of = checkpoint.progress(path).settings
    return adapter_settings(
        f"{setting}={str(path)!r}", of.get("model.lora.r"), of.get("model.lora.alpha"), of.get("model.path")
    )


def read_adapter(path: Path, setting: str = "adapter") -> Adapter:
    """The adapter at `path`. Pickled weights are not read.

    Raises ModelError, which names `setting`, where it is none, is damaged or is no plain LoRA, and CheckpointError
    where a checkpoint is not as it was written.
    """
    if checkpoint.is_checkpoint(path):
        checkpoint.check(path)
    settings, file, name = read_settings(path, setting), weights_file(path), f"{setting}={str(path)!r}"
    try:
        tensors = load(file.read_bytes())  # not mapped: the file may be written anew while they are in use
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{setting}: {file} cannot be read ({first_line(error)}); copy or save it again") from None
    try:
        pairs = as_pairs(tensors)
    except ValueError as error:
        raise ModelError(f"{name} cannot be used: {error}; give plain LoRA") from None
    if not pairs:
        raise ModelError(f"{name} holds no tensors; save it again")
    ranks = {size for a, b in pairs.values() for size in (*a.shape[:1], *b.shape[1:])}
    if ranks != {settings.r}:
        raise ModelError(f"{name} says r={settings.r}, and its weights have {sorted(ranks)}; save it again")
    return Adapter(path, tensors, settings.r, settings.alpha, settings.base)


def check_fit(adapter: Adapter, layers: Mapping[str, tuple[int, int]], model: str, setting: str = "adapter") -> None:
    """ModelError unless all of the adapter has its place in the base model, which the message calls `model`.

    `layers` are inputs and outputs of its linear layers by module name. vLLM would fill up what is too small.
    """
    misfit = f"{setting}={str(adapter.folder)!r} does not fit {model}"
    hint = f"it was made for {adapter.base!r}" if adapter.base else "give the base model that it was trained on"
    for module, (a, b) in sorted(adapter.pairs.items()):
        if module not in layers:
            raise ModelError(f"{misfit}, which has no linear layer {module}; {hint}")
        inputs, outputs = layers[module]
        if (tuple(a.shape), tuple(b.shape)) != ((adapter.r, inputs), (outputs, adapter.r)):
            raise ModelError(
                f"{misfit}: {module} has {inputs} inputs and {outputs} outputs there, the adapter's A is {_size(a)} "
                f"and B {_size(b)}; {hint}"
            )


def served_rank(r: int) -> int | None:
    """The rank that an engine is set up for to serve adapters of rank `r`; None where there is none so large."""
    return next((rank for rank in RANKS if rank >= r), None)


def _size(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
