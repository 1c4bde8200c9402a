"""Liger's Triton kernels for RMSNorm and SwiGLU, in place of those of Transformers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any


def use_liger_kernels(model: Any) -> str | None:
    """Make a causal language model, also one with PEFT's adapter, compute RMSNorm and SwiGLU with Liger's kernels.

    They keep fewer activations for the backward pass. Only norms of hidden states are replaced, and in this process
    also those of models that are built later. Returns None, or a notice for the user if the model stays as it is.
    """
    kind = model.config.model_type
    reason = missing(kind)
    if reason is not None:
        return f"learner.liger_kernels=true has no effect: {reason}"
    from transformers.integrations.liger import apply_liger_kernel

    # Only these two: the learner computes its own log-probabilities, and rotary embeddings keep nothing.
    others = dict.fromkeys(("rope", "cross_entropy", "fused_linear_cross_entropy"), False)
    apply_liger_kernel(model, {**others, "rms_norm": True, "swiglu": True})
    return None


def missing(kind: str) -> str | None:
    """Return the reason why the kernels cannot compute models of this type here; None if they can."""
    import torch

    if not torch.cuda.is_available():
        return "the learner has no GPU"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if find_spec("liger_kernel") is None:
        return "liger-kernel is not installed (pip install 'adagrpo_ray[liger]')"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN

    return None if kind in KNOWN else f"liger-kernel has no kernels for models of type {kind}"
