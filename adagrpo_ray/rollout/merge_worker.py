"""Mode `merged` inside vLLM's worker process: base weights and adapter become one, and the layers are checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from adagrpo_ray.lora.payload import as_pairs, digest_of, unpack

PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest share of a layer's output by which the merged layer may differ from the weights that it was given."""


class MergeWorker:
    """A part of `AdapterWorker`; `model_runner`, `vllm_config` and `reload_weights` are the worker's own."""

    model_runner: Any
    vllm_config: Any
    reload_weights: Any
    _base: dict[str, torch.Tensor]

    def merge_adapter(self, data: bytes, r: int, alpha: float) -> str:
        """Load base + (alpha / r) B A through vLLM's own weight reload; returns the digest of the merged adapter.

        Merges always start from the base weights as they are on disk, kept in host memory. Afterwards each
        changed layer is run on a probe and compared with its merged weight, since vLLM may pack weights
        into a form that cannot be read; RuntimeError if they differ. With `rollout.tensor_parallel_size` above 1
        there is no probe, since a worker holds shards only: then the digest of the tensors that arrived is all.
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
