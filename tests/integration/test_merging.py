"""Merging an adapter in vLLM loads only the layers that it changes, and gives the same as loading all weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.merging import ADAPTERS, ALPHA, BROKEN, FIRST, LAYERS, R, adapter, probe_inputs, write_model

PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""The modules of the checkpoint in vLLM's packed layers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model, into which a program has merged adapters."""
    folder = tmp_path_factory.mktemp("merging")
    write_model(folder)
    command = [sys.executable, "-m", "tests.support.merging", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.fixture(scope="module")
def merged(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "merged.pt")
    return found


def expected(folder: Path, modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The outputs of vLLM's linear layers, computed from the files in plain torch."""
    weights, tensors = load_file(folder / "model.safetensors"), adapter(modules)
    for module in modules:
        a, b = (tensors[f"base_model.model.{module}.lora_{which}.weight"] for which in "AB")
        weights[f"{module}.weight"] += ALPHA / R * (b @ a)
    found = {}
    for layer in range(LAYERS):
        for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            parent, _, last = name.partition(".")
            parts = PARTS.get(last, (last,))
            weight = torch.cat([weights[f"model.layers.{layer}.{parent}.{part}.weight"] for part in parts])
            found[f"model.layers.{layer}.{name}"] = probe_inputs(weight.shape[1]) @ weight.T
    return found


@pytest.mark.parametrize("name", [*ADAPTERS, "whole"])
def test_layers_have_the_weights_of_the_last_adapter_and_no_others(
    folder: Path, merged: dict[str, Any], name: str
) -> None:
    wanted = expected(folder, ADAPTERS["all" if name == "whole" else name])
    assert merged[name]["arrived"]
    torch.testing.assert_close(merged[name]["outputs"], wanted, rtol=1e-5, atol=1e-5)
    base = expected(folder, ())
    moved = {layer for layer in wanted if (wanted[layer] - base[layer]).abs().max() > 0.01}
    assert len(moved) == {"one": 1, "all": 8, "other": 1, "whole": 8}[name]


def test_only_layers_that_change_are_loaded_with_all_of_their_parts(merged: dict[str, Any]) -> None:
    parent = FIRST.rpartition(".")[0]
    qkv = {f"{parent}.{part}.{kind}" for part in PARTS["qkv_proj"] for kind in ("weight", "bias")}
    assert set(merged["one"]["loaded"]) == qkv
    every = {f"{module}.weight" for module in ADAPTERS["all"]}
    assert {name for name in merged["all"]["loaded"] if name.endswith("weight")} == every
    assert set(merged["other"]["loaded"]) == set(merged["all"]["loaded"])  # the layers of "all" get their base again
    assert "model.norm.weight" in merged["whole"]["loaded"]
    for name in ("one", "all", "other", "whole"):
        assert len(set(merged[name]["loaded"])) == len(merged[name]["loaded"])


def test_loading_single_layers_and_all_weights_give_the_same_bits(merged: dict[str, Any]) -> None:
    one, other = merged["all"]["outputs"], merged["whole"]["outputs"]
    assert all(torch.equal(one[name], other[name]) for name in one)
    first = merged["base"]["outputs"]
    assert [n for n in first if not torch.equal(first[n], merged["other"]["outputs"][n])] == [
        "model.layers.1.mlp.down_proj"
    ]


def test_a_layer_that_loads_wrongly_is_found_although_another_one_is_not_declared(merged: dict[str, Any]) -> None:
    error = f"the output of layer {BROKEN} is not that of its merged weights"
    assert merged["broken"].get("error", "").startswith(error)
