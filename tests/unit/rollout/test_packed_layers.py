"""Weights of a checkpoint are assigned to the layers in which vLLM packs them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from adagrpo_ray.rollout.packed_layers import packed_layers


class Linear(torch.nn.Module):
    """As vLLM's linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.quant_method = None


def make_model(**attributes: Any) -> torch.nn.Module:
    """Two layers of a decoder, with the names that vLLM has for them."""
    layers = torch.nn.ModuleList(
        torch.nn.ModuleDict({"qkv_proj": Linear(), "o_proj": Linear(), "norm": torch.nn.Identity()}) for _ in range(2)
    )
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": layers}), "lm_head": Linear()})
    for name, value in ({"packed_modules_mapping": {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}} | attributes).items():
        setattr(model, name, value)
    return model


def names(prefix: str = "model", parts: tuple[str, ...] = ("k_proj", "q_proj", "v_proj", "o_proj")) -> list[str]:
    weights = [f"{prefix}.layers.{layer}.{part}.weight" for layer in range(2) for part in parts]
    return [*weights, f"{prefix}.layers.0.q_proj.bias", f"{prefix}.layers.0.norm.weight", "lm_head.weight"]


def test_parts_are_in_the_order_of_the_layer_with_its_bias() -> None:
    found = packed_layers(make_model(), names())
    layer = found["model.layers.0.k_proj.weight"]
    assert layer.name == "model.layers.0.qkv_proj"
    assert layer.weights == tuple(f"model.layers.0.{part}_proj.weight" for part in "qkv")
    assert set(layer.tensors) == {*layer.weights, "model.layers.0.q_proj.bias"}
    assert found["model.layers.0.q_proj.weight"] is layer
    assert found["model.layers.1.q_proj.weight"] is not layer
    assert found["model.layers.1.o_proj.weight"].tensors == ("model.layers.1.o_proj.weight",)
    assert found["lm_head.weight"].name == "lm_head"
    assert "model.layers.0.norm.weight" not in found  # no linear layer


def test_names_of_the_checkpoint_are_mapped_to_those_of_vllm() -> None:
    renames = SimpleNamespace(map_name=lambda name: name.replace("language_model.", "model."))
    model = make_model(hf_to_vllm_mapper=SimpleNamespace(get_rename_mapper=lambda: renames))
    found = packed_layers(model, names("language_model"))
    assert found["language_model.layers.1.v_proj.weight"].name == "model.layers.1.qkv_proj"
    assert found["language_model.layers.1.v_proj.weight"].weights[0] == "language_model.layers.1.q_proj.weight"


def test_weights_whose_packing_is_not_known_are_left_out() -> None:
    found = packed_layers(make_model(packed_modules_mapping={}), names())
    assert set(found) == {"model.layers.0.o_proj.weight", "model.layers.1.o_proj.weight", "lm_head.weight"}


def test_a_layer_that_lacks_a_part_is_left_out() -> None:
    found = packed_layers(make_model(), names(parts=("q_proj", "k_proj", "o_proj")))
    assert not [name for name in found if "q_proj" in name or "k_proj" in name]
