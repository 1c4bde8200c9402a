"""Merges an adapter into its base model: W + scale * B A for the weights that it changes, from file to file.

No model is built: the memory holds one shard of the result and one weight in float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adagrpo_ray.errors import ModelError
from adagrpo_ray.lora.adapters import Adapter, check_fit
from adagrpo_ray.model.folder import INDEX, WEIGHTS

SHARD_BYTES = 2 * 2**30
"""Largest size of one file of the result, in bytes."""
TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of weights that can be merged: safetensors' name -> torch's name."""
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True)
class Weight:
    """A tensor of the base model.

    file: the file that holds it.
    dtype: its type there, in safetensors' names.
    becomes: its type in the result, in safetensors' names.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    becomes: str

    @property
    def numbers(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size in the result, in bytes."""
        return self.numbers * SIZES.get(self.becomes, 1)


@dataclass(frozen=True, eq=False)
class Merge:
    """A planned merge.

    weights: all tensors of the base model by name.
    pairs: name of a weight -> (A [r, in], B [out, r]).
    scaling: the factor of B A, alpha / r.
    shards: names of the weights in each file of the result.
    """

    weights: Mapping[str, Weight]
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    scaling: float
    shards: tuple[tuple[str, ...], ...]

    @property
    def dtype(self) -> str:
        """The type of the merged weights in the result; the coarsest one if there are several."""
        kinds = {TYPES[self.weights[name].becomes] for name in self.pairs}
        return next(kind for kind in ("bfloat16", "float16", "float32") if kind in kinds)

    @property
    def types(self) -> dict[str, str]:
        """Name of a floating-point weight -> its type in the result, in torch's names."""
        return {name: TYPES[weight.becomes] for name, weight in self.weights.items() if weight.becomes in TYPES}

    @property
    def bytes(self) -> int:
        """Size of the result, in bytes."""
        return sum(weight.bytes for weight in self.weights.values())

    @property
    def peak_bytes(self) -> int:
        """Memory that `write` takes, in bytes: a shard, the largest weight (with its float32 copy), the adapter."""
        shard = max(sum(self.weights[name].bytes for name in names) for names in self.shards)
        largest = max(
            weight.numbers * (SIZES.get(weight.dtype, 1) + (4 if name in self.pairs else 0))
            for name, weight in self.weights.items()
        )
        return shard + largest + sum(4 * (a.numel() + b.numel()) for a, b in self.pairs.values())

    @property
    def numbers(self) -> int:
        """The number of the model's parameters."""
        return sum(weight.numbers for weight in self.weights.values())


def plan(base: Path, adapter: Adapter, dtype: str | None, shard_bytes: int = SHARD_BYTES) -> Merge:
    """Plan the merge of `adapter` into the model in the folder `base`, without writing anything.

    `dtype` is the type of the result's weights; None keeps the type of each weight. Raises ModelError if the adapter
    does not fit the base, or if a weight that it changes is of another type than those of `TYPES`.
    """
    kind = next((key for key, name in TYPES.items() if name == dtype), None)
    weights = {name: weight for file in sorted(base.glob("*.safetensors")) for name, weight in _weights(file, kind)}
    pairs = {f"{module}.weight": (a.float(), b.float()) for module, (a, b) in adapter.pairs.items()}
    for name in sorted(weights.keys() & pairs.keys()):
        if weights[name].dtype not in TYPES:
            raise ModelError(
                f"{name} of the base model is of type {weights[name].dtype}, which is not merged; give a base model of "
                f"{', '.join(TYPES.values())}"
            )
    matrices = {name: weight.shape for name, weight in weights.items() if len(weight.shape) == 2}
    layers = {name.removesuffix(".weight"): (into, out) for name, (out, into) in matrices.items()}
    check_fit(adapter, layers, f"the base model {str(base)!r} (--base)")
    return Merge(weights, pairs, adapter.alpha / adapter.r, tuple(_shards(weights, shard_bytes)))


def write(merge: Merge, out: Path) -> None:
    """Write the merged weights as safetensors files into the folder `out`. Raises OSError or SafetensorError."""
    places: dict[str, str] = {}
    for number, names in enumerate(merge.shards, start=1):
        file = out / (
            WEIGHTS if len(merge.shards) == 1 else f"model-{number:05d}-of-{len(merge.shards):05d}.safetensors"
        )
        save_file(_merged(merge, names), file, metadata={"format": "pt"})
        file.chmod(out.stat().st_mode & 0o666)  # save_file makes it unreadable for other users
        places.update(dict.fromkeys(names, file.name))
    if len(merge.shards) > 1:
        index = {"metadata": {"total_size": merge.bytes}, "weight_map": dict(sorted(places.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _merged(merge: Merge, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of one shard of the result."""
    done = {}
    with ExitStack() as files:
        opened = {
            file: files.enter_context(safe_open(file, framework="pt"))
            for file in {merge.weights[name].file for name in names}
        }
        for name in names:
            weight = merge.weights[name]
            tensor = opened[weight.file].get_tensor(name)
            if name in merge.pairs:
                a, b = merge.pairs[name]
                tensor = tensor.to(torch.float32, copy=True).addmm_(b, a, alpha=merge.scaling)
            becomes = TYPES.get(weight.becomes)
            done[name] = tensor.to(getattr(torch, becomes)).contiguous() if becomes else tensor
    return done


def _weights(file: Path, kind: str | None) -> Iterator[tuple[str, Weight]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 it is not a dict
            part = opened.get_slice(name)
            dtype = part.get_dtype()
            becomes = kind if kind is not None and dtype in TYPES else dtype
            yield name, Weight(file, tuple(part.get_shape()), dtype, becomes)


def _shards(weights: Mapping[str, Weight], limit: int) -> Iterator[tuple[str, ...]]:
    """Split the names, in the order of the base's files, into shards of at most `limit` bytes, or of one weight."""
    names: list[str] = []
    size = 0
    for name, weight in weights.items():
        if names and size + weight.bytes > limit:
            yield tuple(names)
            names, size = [], 0
        names.append(name)
        size += weight.bytes
    yield tuple(names)
