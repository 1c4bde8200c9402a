"""Loads a model divided over the ranks of ZeRO stage 3, so that no rank ever has all of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def load_divided(load: Callable[[], Any], settings: dict[str, Any]) -> Any:
    """Call `load`, a `from_pretrained` of Transformers, on all ranks together; returns the divided model.

    `settings` is a DeepSpeed configuration of stage 3. Each rank keeps only its part of each weight, on its device.
    Without this, each rank would load all weights into the memory of its host, and DeepSpeed (0.19) would copy all of
    them to its device before it divides them.
    """
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    kept = HfDeepSpeedConfig(settings)  # Transformers divides the models that it loads while this object exists
    try:
        model = load()
    finally:
        unset_hf_deepspeed_config()
        del kept
    _restore_buffers(model)
    return model


def _restore_buffers(model: Any) -> None:
    """Compute the buffers of modules without weights again, in float32, as if the model had been loaded whole.

    DeepSpeed makes them in the type of the weights. In bfloat16 the frequencies of rotary embeddings are wrong by up to
    one part in 256, and the angle of a token by that part of its position.
    """
    import torch

    for module in model.modules():
        names = [name for name, _ in module.named_buffers(recurse=False) if name in module._non_persistent_buffers_set]
        buffers = [buffer for buffer in map(module.get_buffer, names) if buffer.is_floating_point()]
        if not buffers or next(module.parameters(recurse=False), None) is not None:
            continue
        for buffer in buffers:
            buffer.data = buffer.data.float()
        with torch.no_grad():
            model._init_weights(module)  # Transformers computes such buffers in it, since no file has them
