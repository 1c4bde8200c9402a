"""Reads and checks a trained LoRA adapter: a folder in PEFT's layout, or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.config.model import LoraSettings
from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.lora.payload import PEFT_PREFIX, AdapterWeights, as_pairs, pack
from adagrpo_ray.model.folder import ADAPTER_WEIGHTS, AdapterSettings, adapter_settings, read_adapter_folder

RANKS: tuple[int, ...] = get_args(LoraSettings.model_fields["r"].annotation)
"""The ranks that vLLM's LoRA kernels support."""
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The types that the tensors of an adapter may have."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter in memory.

    - `folder`: the path that it was read from.
    - `tensors`: keyed as in PEFT's files.
    - `r`, `alpha`: rank and alpha of LoRA.
    - `base`: the base model that it names; "" if it names none.
    - `targets`: as in `AdapterSettings`.
    """

    folder: Path
    tensors: dict[str, torch.Tensor]
    r: int
    alpha: float
    base: str
    targets: tuple[str, ...] | None = None

    @property
    def pairs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Module name of the base model -> (A [r, in], B [out, r])."""
        return as_pairs(self.tensors)

    def packed(self, version: int, dtype: str) -> AdapterWeights:
        """The adapter for rollout engines, whose weights have the type `dtype`."""
        return pack(version, self.tensors, self.r, self.alpha, getattr(torch, dtype))


def weights_file(path: Path) -> Path:
    """The path of the file with the weights of the adapter at `path`; the file need not exist."""
    return path / (checkpoint.WEIGHTS if checkpoint.is_checkpoint(path) else ADAPTER_WEIGHTS)


def read_settings(path: Path, setting: str = "adapter") -> AdapterSettings:
    """Read rank, alpha and base model of the adapter at `path`, without its weights.

    Raises ModelError if the settings are missing or damaged, and CheckpointError if a checkpoint is not complete.
    """
    if not checkpoint.is_checkpoint(path):
        return read_adapter_folder(str(path), setting)
    settings = checkpoint.progress(path).settings
    r, alpha, targets = (settings.get(f"model.lora.{key}") for key in ("r", "alpha", "targets"))
    return adapter_settings(f"{setting}={str(path)!r}", r, alpha, settings.get("model.path"), targets)


def read_adapter(path: Path, setting: str = "adapter") -> Adapter:
    """Read the adapter at `path`. Pickled weights are not read.

    Raises ModelError if there is no adapter at `path`, or it is damaged or not a plain LoRA adapter; the message names
    `setting`. Raises CheckpointError if a checkpoint has changed since it was written.
    """
    if checkpoint.is_checkpoint(path):
        checkpoint.check(path)
    settings, file, name = read_settings(path, setting), weights_file(path), f"{setting}={str(path)!r}"
    try:
        tensors = load(file.read_bytes())  # not mapped: the file may be rewritten while they are in use
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
        raise ModelError(f"{name} has r={settings.r}, but the ranks of its weights are {sorted(ranks)}; save it again")
    _check_numbers(tensors, name)
    _check_names(tensors, pairs, settings.targets, name)
    return Adapter(path, tensors, settings.r, settings.alpha, settings.base, settings.targets)


def _check_numbers(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise ModelError unless all numbers are finite floating-point numbers."""
    for key, tensor in sorted(tensors.items()):
        if tensor.dtype not in DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{name}: {key} is of type {kind}; save it as float32 or bfloat16")
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{name}: {key} holds numbers that are not finite; give an adapter of an earlier step")


def _check_names(
    tensors: Mapping[str, torch.Tensor], modules: Iterable[str], targets: tuple[str, ...] | None, name: str
) -> None:
    """Raise ModelError if PEFT would ignore a tensor: one without its prefix, or of a layer outside `targets`."""
    if odd := sorted(key for key in tensors if not key.startswith(PEFT_PREFIX)):
        raise ModelError(
            f"{name}: the key {odd[0]!r} does not begin with {PEFT_PREFIX!r}, so that PEFT ignores it; save the "
            "adapter with PEFT's save_pretrained"
        )
    if targets is not None and (odd := sorted(module for module in modules if not is_named(module, targets))):
        raise ModelError(
            f"{name} has weights for {odd[0]}, but its target_modules are {', '.join(sorted(targets))}; save it again"
        )


def is_named(module: str, targets: Iterable[str]) -> bool:
    """Whether PEFT would choose `module` for these target modules, which it compares with the end of the name."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


def check_fit(adapter: Adapter, layers: Mapping[str, tuple[int, int]], model: str, setting: str = "adapter") -> None:
    """Raise ModelError unless the adapter fits the base model, which the message calls `model`.

    It fits if each of its tensors belongs to a layer of the model and has the shape for it, and if each target layer
    has an A and a B. `layers` has inputs and outputs of the linear layers by module name. vLLM does not check this: it
    pads tensors that are too small.
    """
    misfit = f"{setting}={str(adapter.folder)!r} does not fit {model}"
    hint = f"it was made for {adapter.base!r}" if adapter.base else "give the base model that it was trained on"
    for module, (a, b) in sorted(adapter.pairs.items()):
        if module not in layers:
            raise ModelError(f"{misfit}, which has no linear layer {module}; {hint}")
        inputs, outputs = layers[module]
        if (tuple(a.shape), tuple(b.shape)) != ((adapter.r, inputs), (outputs, adapter.r)):
            raise ModelError(
                f"{misfit}: {module} has {inputs} inputs and {outputs} outputs there, but the adapter's A is "
                f"{_size(a)} and its B is {_size(b)}; {hint}"
            )
    # Transformers joins the experts of a layer into one tensor, which an adapter of linear layers cannot change.
    targeted = [m for m in layers if is_named(m, adapter.targets or ()) and ".experts." not in m]
    if missing := [module for module in targeted if module not in adapter.pairs]:
        raise ModelError(
            f"{misfit}: it has no weights for {len(missing)} of the {len(targeted)} layers there that are named "
            f"{', '.join(sorted(adapter.targets or ()))} (first: {missing[0]}); save all of it, or {hint}"
        )


def served_rank(r: int) -> int | None:
    """The smallest rank that vLLM supports and that serves adapters of rank `r`; None if `r` is too large."""
    return next((rank for rank in RANKS if rank >= r), None)


def _size(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
