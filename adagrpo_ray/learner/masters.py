"""The whole float32 weights and Adam moments inside DeepSpeed's optimizers, at every ZeRO stage.

By stage and type of the model (DeepSpeed 0.19), torch's fused AdamW steps on
    0, float32      the parameters themselves
    0, bfloat16     a float32 copy of each parameter, in `fp32_groups` of an FP16_UnfusedOptimizer
    1 and 2         each rank's part of one flat float32 copy, to which a parameter has a `_hp_mapping`
    3               each rank's part of every parameter, also flat; a parameter's own part is its `ds_tensor`
AdamW creates its state at its first step. This module creates it before, as zeros at step 0, with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

MOMENTS = ("exp_avg", "exp_avg_sq")


class Masters:
    """Reads and writes weights and moments by parameter names; every method is called on all ranks together."""

    def __init__(self, engine: Any, named: Mapping[str, torch.nn.Parameter], rank: int, world_size: int) -> None:
        self._named, self._rank, self._world_size = named, rank, world_size
        self._stage: int = engine.zero_optimization_stage()
        self._adam: Any = engine.basic_optimizer
        optimizer = engine.optimizer
        # Stage 3 fills the groups of AdamW only during a step.
        flat = getattr(optimizer, "fp32_partitioned_groups_flat", None)
        self._stepped = flat or [p for group in self._adam.param_groups for p in group["params"]]
        self._copies: dict[Any, Any] = {}  # of stage 0, by parameter
        if hasattr(optimizer, "fp32_groups"):
            self._copies = dict(zip(chain(*optimizer.fp16_groups), chain(*optimizer.fp32_groups), strict=True))
        for tensor in self._stepped:
            if not self._adam.state[tensor]:
                zeros = {key: torch.zeros_like(tensor) for key in MOMENTS}
                self._adam.state[tensor] = {"step": torch.zeros((), device=tensor.device), **zeros}
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            optimizer._lazy_init_hp_params_optimizer_state()

    def read(self) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], int]:
        """Read the weights by parameter name, the moments as "exp_avg/NAME", and the number of Adam's steps."""
        weights = {name: self._read(p, None) for name, p in self._named.items()}
        moments = {f"{key}/{name}": self._read(p, key) for key in MOMENTS for name, p in self._named.items()}
        return weights, moments, max(int(self._adam.state[t]["step"]) for t in self._stepped)

    def write(self, weights: Mapping[str, NDArray[Any]], moments: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Restore the results of `read`; the weights go into the model, too, in its own type."""
        with torch.no_grad():
            for name, parameter in self._named.items():
                weight = torch.tensor(weights[name])
                self._write(parameter, weight, None)
                self._write_model(parameter, weight)
                for key in MOMENTS:
                    self._write(parameter, torch.tensor(moments[f"{key}/{name}"]), key)
            for tensor in self._stepped:
                self._adam.state[tensor]["step"].fill_(steps)

    def begin(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Set the state before any update: `weights`, moments of 0, step 0.

        DeepSpeed 0.19 creates AdamW's state at stage 0 in bfloat16 by a step on gradients of 0. That step decays the
        float32 weights and counts in the bias correction: the first update would be only three quarters of its size.
        """
        moments = {f"{key}/{name}": np.zeros_like(weight) for key in MOMENTS for name, weight in weights.items()}
        self.write(weights, moments, 0)

    def _read(self, parameter: Any, key: str | None) -> NDArray[Any]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self._stage == 0:
            whole = self._own(parameter, key)
        elif key is None:
            whole = safe_get_full_fp32_param(parameter)
        else:
            whole = safe_get_full_optimizer_state(parameter, key)
        return np.ascontiguousarray(whole.detach().to("cpu", torch.float32, copy=True).numpy())

    def _write(self, parameter: Any, value: torch.Tensor, key: str | None) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        parts = self._stage == 3  # there, setting whole tensors fails if the ranks do not divide their size
        if parts:
            value = self._part(parameter, value)
        if self._stage == 0:
            self._own(parameter, key).copy_(value)
        elif key is None:
            (safe_set_local_fp32_param if parts else safe_set_full_fp32_param)(parameter, value)
        else:
            (safe_set_local_optimizer_state if parts else safe_set_full_optimizer_state)(parameter, value, key)

    def _write_model(self, parameter: Any, value: torch.Tensor) -> None:
        if self._stage == 3:
            parameter.ds_tensor.copy_(self._part(parameter, value))
        if parameter.shape == value.shape:  # under stage 3 only while the parameter is gathered
            parameter.data.copy_(value)

    def _own(self, parameter: Any, key: str | None) -> Any:
        """The tensor itself at stage 0: the weights, or a moment."""
        weights = self._copies.get(parameter, parameter)
        return weights if key is None else self._adam.state[weights][key]

    def _part(self, parameter: Any, value: torch.Tensor) -> torch.Tensor:
        """This rank's part of a tensor under stage 3; the last rank's part is padded with zeros."""
        size = parameter.ds_tensor.numel()
        padded = torch.nn.functional.pad(value.flatten(), (0, size * self._world_size - value.numel()))
        return padded[size * self._rank : size * (self._rank + 1)]
