"""Reading an adapter from disk for the engine: a PEFT folder, or a checkpoint of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from adagrpo_ray.adapter import AdapterWeights, as_pairs, pack
from adagrpo_ray.config import Config, load_config
from adagrpo_ray.config.tree import LoraSettings
from adagrpo_ray.errors import ConfigError, ModelError
from adagrpo_ray.learner import checkpoint
from adagrpo_ray.memory import read_shape
from adagrpo_ray.model.folder import ADAPTER_WEIGHTS, first_line, read_adapter_folder

CHECKPOINT_WEIGHTS = "adapter.safetensors"
RANKS: tuple[int, ...] = get_args(LoraSettings.model_fields["r"].annotation)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter in memory, its tensors keyed as in PEFT's files."""

    tensors: dict[str, torch.Tensor]
    r: int
    alpha: float

    def packed(self, version: int, dtype: str) -> AdapterWeights:
        """The same for the engine, whose weights are of type `dtype`."""
        return pack(version, self.tensors, self.r, self.alpha, getattr(torch, dtype))


def stamp(path: Path) -> tuple[str, int, int]:
    """Another one where the adapter at `path` has been written anew; ModelError where there is none."""
    file = _weights(path)
    try:
        status = file.stat()
    except OSError:
        raise ModelError(
            f"the adapter {str(path)!r} holds no {file.name}; give a folder with {ADAPTER_WEIGHTS}, or a checkpoint"
        ) from None
    return str(file), status.st_mtime_ns, status.st_size


def rank_of(path: Path) -> int:
    """The rank of the adapter at `path`, without reading its weights; ModelError as `read_adapter` has it."""
    return _scale(path)[0]


def read_adapter(path: Path, base: Config) -> Adapter:
    """The adapter at `path`, checked against the base model in `base`; pickled weights are not read.

    Raises ModelError where it is none, is damaged, is of a kind or rank that is not served, or is of another model.
    """
    r, alpha = _scale(path)
    file = _weights(path)
    if file.name == CHECKPOINT_WEIGHTS and not checkpoint.intact(path, file.name):
        raise ModelError(f"the adapter in {str(path)!r} is not as it was written; take another checkpoint")
    try:
        tensors = load(file.read_bytes())
        pairs = as_pairs(tensors)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter {str(file)!r} cannot be read ({first_line(error)}); copy it again") from None
    ranks = {a.shape[0] for a, _ in pairs.values()} | {b.shape[1] for _, b in pairs.values()}
    if ranks != {r}:
        raise ModelError(f"the adapter {str(path)!r} says r={r}, and its weights have {sorted(ranks)}; save it again")
    _check_shapes(path, pairs, base)
    return Adapter(tensors, r, alpha)


def _weights(path: Path) -> Path:
    return path / (CHECKPOINT_WEIGHTS if checkpoint.is_checkpoint(path) else ADAPTER_WEIGHTS)


def _scale(path: Path) -> tuple[int, float]:
    """r and alpha of the adapter at `path`."""
    stamp(path)
    if checkpoint.is_checkpoint(path):
        try:
            lora = load_config(path.parent.parent / "config.yaml").model.lora
        except ConfigError as error:
            raise ModelError(f"the rank of {str(path)!r} is in the run's config.yaml: {first_line(error)}") from None
        return lora.r, lora.alpha
    kept = read_adapter_folder(str(path), "the adapter")
    r, alpha = kept.get("r"), kept.get("lora_alpha")
    if not isinstance(r, int) or not isinstance(alpha, int | float) or not 1 <= r <= RANKS[-1]:
        raise ModelError(
            f"the adapter {str(path)!r} has r={r!r}, alpha={alpha!r}; a rank of 1 to {RANKS[-1]} is served"
        )
    return r, float(alpha)


def _check_shapes(path: Path, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], base: Config) -> None:
    """ModelError where a layer has other sizes than the base model's. vLLM would fill up what is too small."""
    try:
        shape = read_shape(base)
    except ModelError:
        return  # a shape that is not known: then it is vLLM that refuses what does not fit
    for module, (a, b) in pairs.items():
        name = module.rpartition(".")[2]
        layer = re.search(r"\.layers\.(\d+)\.", module)
        there = shape.linear.get(name)
        if there is None or layer is None or int(layer[1]) >= shape.layers:
            raise ModelError(f"the adapter {str(path)!r} has a layer {module}, which {base.model.path} has not")
        if there != (a.shape[1], b.shape[0]):
            raise ModelError(
                f"the adapter {str(path)!r} is of another model: its {module} takes {a.shape[1]} inputs to "
                f"{b.shape[0]} outputs, that of {base.model.path} {there[0]} to {there[1]}"
            )
