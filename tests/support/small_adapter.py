"""Writes a LoRA adapter of one layer in PEFT's layout, and edits adapters in that layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def save_adapter(folder: Path, r: int = 16) -> None:
    """Write an adapter that changes nothing: B is zero."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {f"{LAYER}.lora_A.weight": torch.ones(r, 8), f"{LAYER}.lora_B.weight": torch.zeros(8, r)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def edited(**values: Any) -> Callable[[Path], None]:
    """An edit of an adapter's settings."""

    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """An edit of an adapter's tensors."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return edit
