"""Inside vLLM's worker process: applies a version of the adapter, and reads it back.

vLLM mixes `AdapterWorker` into its worker class (`worker_extension_cls`). Its methods are called through
`collective_rpc` between two steps of the engine, so that no forward pass sees half an update.
"""

from __future__ import annotations

from adagrpo_ray.lora.payload import as_pairs, digest_of, unpack
from adagrpo_ray.rollout.adapter_slots import held_pairs
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
        return digest_of(held_pairs(manager, lora_id, modules, r), 1.0)
