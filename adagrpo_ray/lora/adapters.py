"""The LoRA adapter at a path, for all who use one that was trained: a folder in PEFT's layout, or a checkpoint."""

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
"""What vLLM's LoRA kernels can be set up for."""
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types that the numbers of an adapter may have."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter in memory, its tensors keyed as in PEFT's files.

    `base` is the base model that it names, "" if it names none. `targets` as in `AdapterSettings`.
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
    r, alpha, targets = (of.get(f"model.lora.{key}") for key in ("r", "alpha", "targets"))
    return adapter_settings(f"{setting}={str(path)!r}", r, alpha, of.get("model.path"), targets)


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
    _check_numbers(tensors, name)
    _check_names(tensors, pairs, settings.targets, name)
    return Adapter(path, tensors, settings.r, settings.alpha, settings.base, settings.targets)


def _check_numbers(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """ModelError unless all are finite floating-point numbers."""
    for key, tensor in sorted(tensors.items()):
        if tensor.dtype not in DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{name}: {key} is of type {kind}; save it as float32 or bfloat16")
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{name}: {key} holds numbers that are not finite; give an adapter of an earlier step")


def _check_names(
    tensors: Mapping[str, torch.Tensor], modules: Iterable[str], targets: tuple[str, ...] | None, name: str
) -> None:
    """ModelError if PEFT would pass over a tensor: one without its prefix, or of a layer outside `targets`."""
    if odd := sorted(key for key in tensors if not key.startswith(PEFT_PREFIX)):
        raise ModelError(
            f"{name}: the key {odd[0]!r} does not begin with {PEFT_PREFIX!r}, so that PEFT passes over it; save the "
            "adapter with PEFT's save_pretrained"
        )
    if targets is not None and (odd := sorted(module for module in modules if not is_named(module, targets))):
        raise ModelError(
            f"{name} holds weights for {odd[0]}, and its target_modules are {', '.join(sorted(targets))}; save it again"
        )


def is_named(module: str, targets: Iterable[str]) -> bool:
    """Whether `module` is one of those that PEFT finds for these target modules: by the end of its name."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


def check_fit(adapter: Adapter, layers: Mapping[str, tuple[int, int]], model: str, setting: str = "adapter") -> None:
    """ModelError unless all of the adapter has its place in the base model, which the message calls `model`, and no
    layer that it is for lacks its A and B.

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
    # Transformers joins the experts of a layer into one tensor, which no adapter of linear layers changes.
    meant = [m for m in layers if is_named(m, adapter.targets or ()) and ".experts." not in m]
    if lacking := [module for module in meant if module not in adapter.pairs]:
        raise ModelError(
            f"{misfit}: it holds no weights for {len(lacking)} of the {len(meant)} layers there that are named "
            f"{', '.join(sorted(adapter.targets or ()))} (first: {lacking[0]}); save all of it, or {hint}"
        )


def served_rank(r: int) -> int | None:
    """The rank that an engine is set up for to serve adapters of rank `r`; None where there is none so large."""
    return next((rank for rank in RANKS if rank >= r), None)


def _size(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
