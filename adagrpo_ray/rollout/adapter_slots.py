"""Inside vLLM's worker process: reads an adapter back from the slots that the LoRA kernels read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def held_pairs(manager: Any, lora_id: int, sent: Mapping[str, tuple[torch.Tensor, torch.Tensor]], r: int) -> Pairs:
    """Map the names of the `sent` modules to (A, scaled B) in the slots, gathered from the workers if they have shards.

    `manager` is vLLM's LoRA manager, and `r` the rank of the adapter; a slot may have more rows.
    """
    slot = manager.lora_index_to_id.index(lora_id)
    held: Pairs = {}
    for name, layer in manager.modules.items():
        parent, _, last = name.rpartition(".")
        for index, part in enumerate(manager.packed_modules_mapping.get(last, [last])):
            module = f"{parent}.{part}"
            if module in sent:
                a, b = sent[module]
                held[module] = (
                    _whole(layer.lora_a_stacked[index][slot, 0, : a.shape[0], : a.shape[1]], a, dim=1),
                    _whole(layer.lora_b_stacked[index][slot, 0, : b.shape[0], :r], b, dim=0),
                )
    return held


def _whole(shard: torch.Tensor, whole: torch.Tensor, dim: int) -> torch.Tensor:
    """Gather the tensor of the shape of `whole` from its shards along `dim`; all tensor-parallel workers call this.

    If there are fewer heads than workers, several neighbouring workers have the same shard.
    """
    if shard.shape == whole.shape:
        return shard
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    shards = group.all_gather(shard.contiguous(), dim=0).chunk(group.world_size)
    copies = group.world_size * shard.shape[dim] // whole.shape[dim]
    return torch.cat(shards[::copies], dim)
