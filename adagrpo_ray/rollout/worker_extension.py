"""Inside vLLM's worker process: applies a version of the adapter, and reads it back.

vLLM mixes `AdapterWorker` into its worker class (`worker_extension_cls`). Its methods are called through
`collective_rpc` between two steps of the engine, so that no forward pass sees half an update.
"""

from __future__ import annotations

from typing import Any

import torch

from adagrpo_ray.lora.payload import as_pairs, digest_of, unpack
from adagrpo_ray.rollout.merge_worker import MergeWorker


class AdapterWorker(MergeWorker):
    """Mixed into vLLM's worker: `install_adapter` for mode `adapter`, `merge_adapter` for mode `merged`."""

    def install_adapter(self, lora_id: int, data: bytes, r: int, alpha: float, keep: int) -> str:
        """Serve the adapter under `lora_id` and remove all but the newest `keep`; returns the digest read back.

        The digest is computed from the slots that the LoRA kernels read, not from the tensors that arrived.
        """
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        tensors = unpack(data)
        modules = as_pairs(tensors)
        manager = self.model_runner.lora_manager._adapter_manager
        for old in sorted(manager.list_adapters())[: -(keep - 1) or None]:
            manager.remove_adapter(old)
        targets = sorted({name.rpartition(".")[2] for name in modules})
        lora = LoRAModel.from_lora_tensors(
            lora_id,
            tensors,
            PEFTHelper(r=r, lora_alpha=alpha, target_modules=targets),
            device="cpu",
            dtype=self.vllm_config.lora_config.lora_dtype,
        )
        manager.add_adapter(lora)
        manager.activate_adapter(lora_id)
        return digest_of(self._slots(manager, lora_id, modules, r), 1.0)

    @staticmethod
    def _slots(manager: Any, lora_id: int, modules: Any, r: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Map module names to (A, scaled B) in the kernels' slots, gathered from the workers if they have shards."""
        slot = manager.lora_index_to_id.index(lora_id)
        held = {}
        for name, layer in manager.modules.items():
            parent, _, last = name.rpartition(".")
            for index, part in enumerate(manager.packed_modules_mapping.get(last, [last])):
                module = f"{parent}.{part}"
                if module in modules:
                    a, b = modules[module]
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
