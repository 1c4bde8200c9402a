"""Which weights of a checkpoint vLLM packs into one layer, such as the projections of query, key and value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A linear layer of vLLM.

    - `name`, `module`: of the layer in vLLM's model.
    - `weights`: names of its weight matrices in the checkpoint, in the order in which it stacks their rows.
    - `tensors`: names of all of its tensors in the checkpoint.
    """

    name: str
    module: Any
    weights: tuple[str, ...]
    tensors: tuple[str, ...]


def packed_layers(model: Any, names: Iterable[str]) -> dict[str, PackedLayer]:
    """Map each weight matrix of vLLM's linear layers to its layer, by its name in the checkpoint.

    `names` are those of all tensors in the checkpoint. Weights are left out if vLLM does not declare how it packs them,
    or if the checkpoint lacks a part of the layer.
    """
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    renames = None if mapper is None else mapper.get_rename_mapper()
    tensors: dict[str, list[str]] = {}  # by vLLM's name of the module, before it is packed
    for name in names:
        own = name if renames is None else renames.map_name(name) or name
        tensors.setdefault(own.rpartition(".")[0], []).append(name)
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
    found: dict[str, PackedLayer] = {}
    for name, module in model.named_modules():
        parent, dot, last = name.rpartition(".")
        parts = [f"{parent}{dot}{part}" for part in packed.get(last, [last])]
        inside = [tensor for part in parts for tensor in tensors.get(part, [])]
        weights = [tensor for tensor in inside if tensor.endswith(".weight")]
        if hasattr(module, "quant_method") and len(weights) == len(parts):
            layer = PackedLayer(name, module, tuple(weights), tuple(inside))
            found |= dict.fromkeys(weights, layer)
    return found
