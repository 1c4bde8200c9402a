"""Mode `merged` inside vLLM's worker process: merges the adapter into the base weights, and checks the layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from adagrpo_ray.lora.payload import as_pairs, digest_of, unpack
from adagrpo_ray.rollout.packed_layers import PackedLayer, packed_layers

PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""The largest relative difference between the output of a layer and that of its merged weights."""
Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A and B of each module of an adapter."""


class MergeWorker:
    """A base class of `AdapterWorker`; `model_runner`, `vllm_config` and `reload_weights` are vLLM's."""

    model_runner: Any
    vllm_config: Any
    reload_weights: Any
    _base: dict[str, torch.Tensor]
    _device: torch.device
    _packed: dict[str, PackedLayer]
    _changed: frozenset[str]

    def merge_adapter(self, data: bytes, r: int, alpha: float) -> str:
        """Load base + (alpha / r) B A into the layers of the adapter; returns the digest of the adapter.

        Every merge starts from the base weights as they are on disk, which are kept in host memory. It is computed on
        the device of the model, layer by layer, and loaded as vLLM reloads weights. Layers that the last adapter
        changed and this one does not get their base weights again; all others are left alone.

        Each of these layers is then run on a probe, and its output is compared with that of its merged weights. The
        weights themselves cannot be compared, since vLLM may pack them. They are not part of the digest either: devices
        round them differently, while the tensors that arrived are the same bytes everywhere.

        Without a probe, only the tensors that arrived are verified. There is none if `rollout.tensor_parallel_size` is
        above 1, since a worker then has only shards, and none of a layer for which vLLM does not declare how it packs
        the weights. If the adapter has such a layer, all weights of the model are loaded.

        Raises RuntimeError if the base model lacks a weight for a module of the adapter, or an output differs.
        """
        pairs, scaling = as_pairs(unpack(data)), alpha / r
        if not hasattr(self, "_base"):
            self._base, self._changed = self._load_base(), frozenset()
            self._device = next(self.model_runner.get_model().parameters()).device  # while vLLM reloads, there is none
            self._packed = packed_layers(self.model_runner.get_model(), self._base)
        changing = frozenset(f"{module}.weight" for module in pairs)
        if missing := sorted(changing - self._base.keys()):
            module = missing[0].removesuffix(".weight")
            raise RuntimeError(f"the base model has no weight for the adapter's module {module}")
        self._changed |= changing  # also if this fails half-way
        declared = sorted(self._changed & self._packed.keys())
        layers = tuple(dict.fromkeys(self._packed[name] for name in declared))  # each once
        if self._changed <= self._packed.keys():
            for layer in layers:
                self._reload_layer(layer, pairs, scaling)
        else:
            self.reload_weights(weights_iterator=self._merged(self._base, pairs, scaling))
            for layer in layers:
                self._probe(layer, dict(self._merged(layer.weights, pairs, scaling)))
        self._changed = changing
        return digest_of(pairs, scaling)

    def _load_base(self) -> dict[str, torch.Tensor]:
        from vllm.model_executor.model_loader import get_model_loader

        loader: Any = get_model_loader(self.vllm_config.load_config)
        model_config = self.vllm_config.model_config
        weights = loader.get_all_weights(model_config, self.model_runner.get_model())
        return {name: weight.to(model_config.dtype) for name, weight in weights}

    def _merged(self, names: Iterable[str], pairs: Pairs, scaling: float) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the merged weights of these names, or the base weight if the adapter does not change it."""
        for name in names:
            weight, pair = self._base[name].to(self._device), pairs.get(name.removesuffix(".weight"))
            if pair is not None:
                a, b = (t.to(self._device, torch.float32) for t in pair)
                weight = torch.addmm(weight.to(torch.float32), b, a, alpha=scaling).to(weight.dtype)
            yield name, weight

    def _reload_layer(self, layer: PackedLayer, pairs: Pairs, scaling: float) -> None:
        """Load all tensors of one layer, of which vLLM makes the layer again, and probe it."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        tensors = dict(self._merged(layer.tensors, pairs, scaling))
        # As `reload_weights` does with the whole model, which warns about each layer that gets no weights.
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(layer.module)
            self.model_runner.get_model().load_weights(tensors.items())
            finalize_layerwise_reload(layer.module, self.vllm_config.model_config)
        self._probe(layer, tensors)

    def _probe(self, layer: PackedLayer, tensors: Mapping[str, torch.Tensor]) -> None:
        """Compare the layer with its merged weights in `tensors`, unless this worker has only a shard of it."""
        if self.vllm_config.parallel_config.tensor_parallel_size == 1:
            probe_layer(layer, [tensors[name] for name in layer.weights])


@torch.inference_mode()
def probe_layer(layer: PackedLayer, weights: Sequence[torch.Tensor]) -> None:
    """Compare the output of a layer on fixed random inputs with those of its `weights` [outputs x inputs], in order.

    Raises RuntimeError if it differs by more than rounding explains.
    """
    first = weights[0]
    inputs = torch.randn(4, first.shape[1], generator=torch.Generator().manual_seed(0))
    x = inputs.to(first.device, first.dtype)
    expected = torch.cat([x.float() @ weight.float().T for weight in weights], dim=1)  # copies no weight in float32
    got = layer.module.quant_method.apply(layer.module, x, None).float()
    error = ((got - expected).norm() / expected.norm()).item()
    if not error < PROBE_TOLERANCE[first.dtype]:
        raise RuntimeError(f"the output of layer {layer.name} is not that of its merged weights (error {error:.2g})")
