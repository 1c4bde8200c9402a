"""Dropout of the policy: LoRA's own during an update, and none at any other time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class UpdateMode:
    """Sets the modes of a policy for an update: LoRA's dropout on, any other dropout off.

    `model.lora.dropout` regularises the adapter. The base model's own dropout (`attention_dropout`, GPT-2's
    `resid_pdrop`) was a setting of its pretraining. Here it would add noise to log-probabilities that are compared with
    those of the rollout engines.

    So all modules are in evaluation mode, with two exceptions: LoRA's dropout, and layers that checkpoint their
    activations, which Transformers does in training mode only. Such a layer is in evaluation mode while it computes.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._dropout = [m for name, m in model.named_modules() if "lora_dropout" in name.split(".")]
        self._checkpointed = _checkpointed(model)
        for layer in self._checkpointed:
            modes: list[bool] = []
            layer.register_forward_pre_hook(_evaluate(modes))
            layer.register_forward_hook(_as_before(modes), always_call=True)

    @property
    def drops(self) -> bool:
        """Whether an update uses dropout."""
        return any(getattr(module, "p", 0.0) > 0.0 for module in self._dropout)

    def begin(self) -> None:
        """Set the mode of every module."""
        self._model.eval()
        for module in (*self._dropout, *self._checkpointed):
            module.training = True  # not `train()`, which also sets the modules inside of a layer


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode within the block, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _checkpointed(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that checkpoint their activations; in models with custom code, the modules that do it for them."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    return [module for module in found if isinstance(module, GradientCheckpointingLayer)] or found


def _evaluate(modes: list[bool]) -> Any:
    def hook(layer: torch.nn.Module, inputs: Any) -> None:
        modes.append(layer.training)
        layer.training = False

    return hook


def _as_before(modes: list[bool]) -> Any:
    def hook(layer: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        layer.training = modes.pop()

    return hook
