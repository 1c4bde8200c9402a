"""Makes a model of Transformers use an attention function of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def attention_of(model: Any) -> str:
    """Transformers' name of the attention that a model uses."""
    return str(model.config.get_text_config()._attn_implementation)


def use_attention(model: Any, name: str, attend: Callable[..., Any], mask: Callable[..., Any]) -> bool:
    """Make a model use the attention function `attend`; returns False if it cannot, since it has its own attention.

    `name` is the name of the function in Transformers. `mask` is Transformers' function that makes its masks.
    """
    if not getattr(model, "_supports_attention_backend", False):
        return False
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)
    model.set_attn_implementation(name)
    return attention_of(model) == name
