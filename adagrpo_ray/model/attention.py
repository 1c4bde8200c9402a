"""Chooses the attention of a model for the packing of its samples, by the abilities of the model and this machine."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import torch

from adagrpo_ray.config.learner import Packing
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model import packed_attention, shared_attention
from adagrpo_ray.model.packed_attention import use_varlen
from adagrpo_ray.model.pretrained import flash_attention
from adagrpo_ray.model.shared_attention import share_prompts

FLASH, FLEX = "flash_attention_2", "flex_attention"
"""Names of the attention of flash-attn and of FlexAttention in Transformers."""
CHOSEN: dict[str, Packing] = {FLASH: "packed", packed_attention.NAME: "packed", shared_attention.NAME: "shared"}
"""The packing of an attention that `use_packing` chose itself; "padded" for any other."""


def use_packing(model: Any, packing: Packing | None, settings: ModelSettings) -> None:
    """Set the attention of a model, loaded with sdpa, for a packing.

    - "packed": a flash kernel; else FlexAttention; else sdpa with a mask of [S x S].
    - None: the first that the model can have of packed with a flash kernel, shared, and padded.

    Raises ModelError if the model cannot have `packing`.
    """
    name = f"model.path={settings.path!r} ({model.config.model_type})"
    match packing:
        case "packed":
            if model._is_stateful:
                raise ModelError(
                    f"{name} has layers with a state, which would pass from one sample of a packed row to the next; "
                    "set learner.packing=padded"
                )
            if not _use_flash(model, settings):
                _use_flex(model)
        case "shared":
            if not share_prompts(model):
                raise ModelError(f"{name} has layers that cannot share a prompt; set learner.packing=padded")
        case None:
            if model._is_stateful or not _use_flash(model, settings):
                share_prompts(model)


def packing_of(model: Any) -> Packing:
    """The packing that `use_packing` chose for None."""
    return CHOSEN.get(model.config.get_text_config()._attn_implementation, "padded")


def _use_flash(model: Any, settings: ModelSettings) -> bool:
    """Make a model use the flash kernel of flash-attn if it is installed, else that of torch, if it runs here."""
    from transformers.utils import is_flash_attn_2_available

    if not flash_attention(settings):
        return False
    if is_flash_attn_2_available():
        with suppress(ImportError, ValueError):  # it does not support this model, or this GPU
            model.set_attn_implementation(FLASH)
    return packing_of(model) == "packed" or use_varlen(model)


def _use_flex(model: Any) -> None:
    """Make a model use FlexAttention if it can: it compiles a kernel with Triton, and has no gradient on CPUs."""
    if torch.cuda.is_available() and find_spec("triton") is not None and model._supports_flex_attn:
        model.set_attn_implementation(FLEX)
