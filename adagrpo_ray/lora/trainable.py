"""Checks, before an actor starts, that an adapter with these settings can be trained on the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.errors import ModelError
from adagrpo_ray.lora.adapters import Adapter, check_fit, read_adapter
from adagrpo_ray.lora.peft_model import with_adapter
from adagrpo_ray.model.pretrained import build_without_weights, shapes_of
from adagrpo_ray.model.quantised import check_unquantised

SETTING = "model.adapter"


def check_trainable(settings: ModelSettings, model_path: str, model_config: Any) -> None:
    """Raise ModelError if the base model cannot be trained with these settings.

    That is so if the model at `model_path` is quantised, if a target of `model.lora.targets` is not a linear layer of
    it, or if `model.adapter` has weights for other layers. `model_config` is Transformers' configuration of the model.
    """
    purpose = "the learner trains on weights that are not"
    check_unquantised(model_path, model_config.to_dict(), f"model.path={settings.path!r}", purpose)
    model = build_without_weights(model_config, settings)
    layers = shapes_of(model)
    with torch.device("meta"):
        with_adapter(model, settings)
    if settings.adapter is not None:
        adapter = read_adapter(Path(settings.adapter), SETTING)
        check_fit(adapter, layers, f"model.path={settings.path!r}", SETTING)
        check_same_layers(adapter, layers, settings.lora.targets)


def check_same_layers(adapter: Adapter, layers: Mapping[str, tuple[int, int]], targets: Sequence[str]) -> None:
    """Raise ModelError unless the adapter has weights for all layers of the `targets`, and for no others."""
    name = f"{SETTING}={str(adapter.folder)!r}"
    held = sorted({module.rpartition(".")[2] for module in adapter.pairs})
    if set(held) != set(targets):
        raise ModelError(
            f"{name} has weights for {', '.join(held)}, but model.lora.targets names {', '.join(targets)}; "
            f"set model.lora.targets=[{','.join(held)}]"
        )
    targeted = [module for module in layers if module.rpartition(".")[2] in targets]
    if missing := [module for module in targeted if module not in adapter.pairs]:
        raise ModelError(
            f"{name} has no weights for {len(missing)} of the {len(targeted)} layers that model.lora.targets names "
            f"(first: {missing[0]}); give an adapter of all of them"
        )
