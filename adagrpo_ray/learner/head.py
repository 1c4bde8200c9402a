"""The logits that a causal language model makes of its last hidden states, with all that it does to them itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adagrpo_ray.errors import ModelError


def base_of(model: Any) -> tuple[str, Any]:
    """The part of `model` that gives hidden states, and the name of its attribute; ModelError if there is none."""
    for base in (model.base_model, model.get_decoder(), getattr(model, "model", None)):
        for name, child in model.named_children():
            if child is base:
                return name, base
    raise ModelError(
        f"model.path: a {type(model).__name__} has no part that gives hidden states without the head "
        f"(base_model_prefix={model.base_model_prefix!r}), which the learner needs; use another model"
    )


def own_head(model: Any, output: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from hidden states [n x H] to the model's own logits [n x V].

    `output` is what the part of the model that `base_of` finds gave. Models scale or cap the logits of the head, each
    under other names in its configuration. Therefore this runs the `forward` of the whole model, in which hidden
    states that are known already take the place of the base model's.
    """
    name, base = base_of(model)
    kind, rest = type(output), output[1:] if isinstance(output, tuple) else {**output}
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
    """Takes the place of a base model: its forward gives an output that is known, all else is the base model's.

    `decoder` is the part of it that some models call in its stead.
    """

    def __init__(self, base: torch.nn.Module, output: Any, decoder: Any = None) -> None:
        super().__init__()
        self.__dict__.update(base=base, output=output, inner=decoder)  # not as parts: their weights are not its own

    def forward(self, *_: Any, **__: Any) -> Any:
        """The known output."""
        return self.output

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["base"], name)
        return _Known(value, self.output) if value is self.inner and value is not None else value
