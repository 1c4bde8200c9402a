"""Chooses the attention of a model for the packing of its samples, by the abilities of the model and this machine."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from adagrpo_ray.config.learner import Packing
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.kernels import flash_attention, flex_attention
from adagrpo_ray.model.own_attention import attention_of
from adagrpo_ray.model.packed_attention import use_varlen
from adagrpo_ray.model.shared_attention import share_prompts
from adagrpo_ray.model.wide_attention import use_wide

FLASH, FLEX, SDPA = "flash_attention_2", "flex_attention", "sdpa"
"""Names of the attention of flash-attn, of FlexAttention and of torch's SDPA in Transformers."""


def use_packing(model: Any, packing: Packing | None, settings: ModelSettings) -> Packing:
    """Set the attention of a model, loaded with sdpa, for a packing, and return the packing.

    - "padded": `use_sdpa`.
    - "packed": a flash kernel; else FlexAttention; else `use_sdpa`, with a mask of [S x S].
    - "shared": `model/shared_attention.py`.
    - None: the first that the model can have of packed with a flash kernel, shared, and padded.

    Raises ModelError if the model cannot have `packing`.
    """
    name = f"model.path={settings.path!r} ({model.config.model_type})"
    if packing == "packed":
        if model._is_stateful:
            raise ModelError(
                f"{name} has layers with a state, which would pass from one sample of a packed row to the next; "
                "set learner.packing=padded"
            )
        if not (_use_flash(model, settings) or _use_flex(model)):
            use_sdpa(model, settings)
        return packing
    if packing == "shared":
        if not share_prompts(model):
            raise ModelError(f"{name} has layers that cannot share a prompt; set learner.packing=padded")
        return packing
    if packing is None:
        if not model._is_stateful and _use_flash(model, settings):
            return "packed"
        if share_prompts(model):
            return "shared"
    use_sdpa(model, settings)
    return "padded"


def use_sdpa(model: Any, settings: ModelSettings) -> None:
    """Make a model use torch's SDPA, in float32 on CUDA with repeated keys and values if the model can have them."""
    if attention_of(model) != SDPA:
        model.set_attn_implementation(SDPA)
    if settings.dtype == "float32" and torch.cuda.is_available():
        use_wide(model)


def _use_flash(model: Any, settings: ModelSettings) -> bool:
    """Make a model use the flash kernel of flash-attn if it is installed, else that of torch, if it runs here."""
    from transformers.utils import is_flash_attn_2_available

    if not flash_attention(settings):
        return False
    if is_flash_attn_2_available():
        with suppress(ImportError, ValueError):  # it does not support this model, or this GPU
            model.set_attn_implementation(FLASH)
    return attention_of(model) == FLASH or use_varlen(model)


def _use_flex(model: Any) -> bool:
    """Make a model use FlexAttention if it can."""
    if not (flex_attention() and model._supports_flex_attn):
        return False
    model.set_attn_implementation(FLEX)
    return attention_of(model) == FLEX
