"""The kernels for the learner that this machine has."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.model.liger import missing


@dataclass(frozen=True)
class Kernels:
    """Kernels that run in the learner.

    - `flash`: a flash kernel for attention.
    - `flex`: FlexAttention.
    - `liger`: Liger's RMSNorm and SwiGLU.
    """

    flash: bool = False
    flex: bool = False
    liger: bool = False


NO_KERNELS = Kernels()
"""Those of a machine without a GPU."""


def flash_attention(model: ModelSettings) -> bool:
    """Return whether a flash kernel can run here: there is a CUDA device, and the model is in bfloat16.

    It is that of flash-attn, or torch's own (`model/packed_attention.py`).
    """
    import torch

    return model.dtype == "bfloat16" and torch.cuda.is_available()


def flex_attention() -> bool:
    """Return whether FlexAttention can run here: Triton compiles its kernel, and it has no gradient on CPUs."""
    import torch

    return torch.cuda.is_available() and find_spec("triton") is not None


def kernels_here(config: Config, model_type: str) -> Kernels:
    """Return the kernels that the learner uses on this machine; `model_type` is that of Transformers' configuration."""
    return Kernels(
        flash=flash_attention(config.model),
        flex=flex_attention(),
        liger=config.learner.liger_kernels and missing(model_type) is None,
    )
