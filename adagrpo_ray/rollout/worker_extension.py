"""What runs inside vLLM's worker process: putting a LoRA version into effect, and reading it back.

vLLM mixes `AdapterWorker` into its worker class (`worker_extension_cls`); methods are called through
`collective_rpc`, between two steps of the engine, so no forward pass sees half an update.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from adagrpo_ray.lora.payload import as_pairs, digest_of, unpack

# Largest share of a layer's output by which the merged layer may differ from the weights that it was given.
PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class AdapterWorker:
    """Mixed into vLLM's worker; `model_runner` and `vllm_config` are the worker's own."""

    model_runner: Any
    vllm_config: Any
    reload_weights: Any
    _base: dict[str, torch.Tensor]

    def install_adapter(self, lora_id: int, data: bytes, r: int, alpha: float, keep: int) -> str:
        """Serve the adapter under `lora_id` and forget all but the newest `keep`; returns the digest read back.

        The digest is taken from the slots that the LoRA kernels read, not from what arrived.
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
        """Module name -> (A, scaled B) as they lie in the kernels' slots, whole again where workers have shards."""
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

    def merge_adapter(self, data: bytes, r: int, alpha: float) -> str:
        """Load base + (alpha / r) B A through vLLM's own weight reload; returns the digest of what was merged.

        Merges always start from the base weights as they are on disk, kept in host memory. Afterwards each
        changed layer is run on a probe and compared with its merged weight, since vLLM may pack weights
        into a form that cannot be read; RuntimeError where they differ. With `tensor_parallel` above 1 there is no
        probe, since a worker holds shards only: there the digest alone is compared, and it is of what arrived.
        """
        pairs = as_pairs(unpack(data))
        base = self._base_weights()
        missing = [m for m in pairs if f"{m}.weight" not in base]
        if missing:
            raise RuntimeError(f"the base model has no weight for the adapter's module {missing[0]}")
        merged: dict[str, torch.Tensor] = {}

        def weights() -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in base.items():
                pair = pairs.get(name.removesuffix(".weight"))
                if pair is not None:
                    a, b = (t.to(torch.float32) for t in pair)
                    weight = (weight.to(torch.float32) + (alpha / r) * (b @ a)).to(weight.dtype)
                    merged[name] = weight
                yield name, weight

        self.reload_weights(weights_iterator=weights())
        self._probe(merged)
        return digest_of(pairs, alpha / r)

    def _base_weights(self) -> dict[str, torch.Tensor]:
        if not hasattr(self, "_base"):
            from vllm.model_executor.model_loader import get_model_loader

            loader: Any = get_model_loader(self.vllm_config.load_config)
            model_config = self.vllm_config.model_config
            weights = loader.get_all_weights(model_config, self.model_runner.get_model())
            self._base = {name: weight.to(model_config.dtype) for name, weight in weights}
        return self._base

    @torch.inference_mode()
    def _probe(self, merged: dict[str, torch.Tensor]) -> None:
        """Compare every changed layer's output on fixed random inputs with that of its merged weight."""
        if self.vllm_config.parallel_config.tensor_parallel_size > 1:
            return  # a shard holds a part of the rows or columns only
        model = self.model_runner.get_model()
        packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        generator = torch.Generator().manual_seed(0)
        for name, layer in model.named_modules():
            parent, _, last = name.rpartition(".")
            parts = [f"{parent}.{part}.weight" for part in packed.get(last, [last])]
            if not any(part in merged for part in parts) or not hasattr(layer, "quant_method"):
                continue
            weight = torch.cat([merged[p] if p in merged else self._base[p] for p in parts])
            x = torch.randn(4, weight.shape[1], generator=generator).to(weight.dtype)
            expected = x.float() @ weight.float().T
            device = next(model.parameters()).device
            got = layer.quant_method.apply(layer, x.to(device), None).float().cpu()
            error = ((got - expected).norm() / expected.norm()).item()
            if not error < PROBE_TOLERANCE[weight.dtype]:
                raise RuntimeError(f"layer {name} computes something else than its merged weights (error {error:.2g})")


def _whole(shard: torch.Tensor, whole: torch.Tensor, dim: int) -> torch.Tensor:
    """The tensor like `whole` whose shards along `dim` the tensor-parallel workers hold; all of them call this.

    Where there are fewer heads than workers, several hold the same shard, one after the other.
    """
    if shard.shape == whole.shape:
        return shard
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    shards = group.all_gather(shard.contiguous(), dim=0).chunk(group.world_size)
    copies = group.world_size * shard.shape[dim] // whole.shape[dim]
    return torch.cat(shards[::copies], dim)
