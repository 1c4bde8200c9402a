"""Mode `merged` inside vLLM's worker process: merges the adapter into the base weights, and checks the layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from adagrpo_ray.lora.payload import as_pairs, digest_of, unpack

PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""The largest relative difference between the output of a layer and that of its merged weights."""


class MergeWorker:
    """A base class of `AdapterWorker`; `model_runner`, `vllm_config` and `reload_weights` are vLLM's."""

    model_runner: Any
    vllm_config: Any
    reload_weights: Any
    _base: dict[str, torch.Tensor]

    def merge_adapter(self, data: bytes, r: int, alpha: float) -> str:
        """Load base + (alpha / r) B A through vLLM's weight reload; returns the digest of the adapter.

        Every merge starts from the base weights as they are on disk, which are kept in host memory. Afterwards each
        changed layer is run on a probe, and its output is compared with that of its merged weight. The weights
        themselves cannot be compared, since vLLM may pack them. With `rollout.tensor_parallel_size` above 1 a worker
        has only shards, so there is no probe, and only the tensors that arrived are verified.

        Raises RuntimeError if the base model lacks a weight for a module of the adapter, or an output differs.
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
        """Compare the output of every changed layer on fixed random inputs with that of its merged weight."""
        if self.vllm_config.parallel_config.tensor_parallel_size > 1:
            return  # a shard has only a part of the rows or columns
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
                raise RuntimeError(f"the output of layer {name} is not that of its merged weights (error {error:.2g})")
