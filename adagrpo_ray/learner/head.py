"""The logits that a causal language model computes from its last hidden states, with its own scales and caps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adagrpo_ray.errors import ModelError


def base_of(model: Any) -> tuple[str, Any]:
    """The name of the attribute of `model` that computes hidden states, and its module.

    Raises ModelError if there is none.
    """
    for base in (model.base_model, model.get_decoder(), getattr(model, "model", None)):
        for name, child in model.named_children():
            if child is base:
                return name, base
    raise ModelError(
        f"model.path: a {type(model).__name__} has no part that computes hidden states without the head "
        f"(base_model_prefix={model.base_model_prefix!r}), which the learner needs; use another model"
    )


def own_head(model: Any, output: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from hidden states [n x H] to the model's own logits [n x V].

    `output` is the output of the module that `base_of` finds. Models scale or cap the logits of the head, each under
    other names in its configuration. Therefore this runs the `forward` of the whole model, in which the known hidden
    states replace those of the base model.
    """
    name, base = base_of(model)
    kind = type(output)
    rest = output[1:] if isinstance(output, tuple) else {**output}
    if isinstance(rest, dict):
        del rest["last_hidden_state"]

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        chunk = hidden[None]
        known = kind(last_hidden_state=chunk, **rest) if isinstance(rest, dict) else (chunk, *rest)
        tokens = torch.zeros(chunk.shape[:2], dtype=torch.long, device=hidden.device)
        model._modules[name] = _Known(base, known, model.get_decoder())
        try:
            result: torch.Tensor = model.forward(input_ids=tokens).logits[0]
            return result
        finally:
            model._modules[name] = base

    return logits


class _Known(torch.nn.Module):
    """Replaces a base model: its forward returns a known output, and all other attributes are those of the base model.

    `decoder` is the part of the base model that some models call instead of it.
    """

    def __init__(self, base: torch.nn.Module, output: Any, decoder: Any = None) -> None:
        super().__init__()
        # Not as submodules: their weights do not belong to this module.
        self.__dict__.update(base=base, output=output, inner=decoder)

    def forward(self, *_: Any, **__: Any) -> Any:
        """The known output."""
        return self.output

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["base"], name)
        return _Known(value, self.output) if value is self.inner and value is not None else value
