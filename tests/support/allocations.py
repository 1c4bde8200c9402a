"""Counts the bytes of tensors as a device's allocator would, on meta tensors, which have no memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
"""Bytes that torch's CUDA allocator rounds up to."""


class Allocations(TorchDispatchMode):
    """Counts the storages that exist: those of `tensors`, and those that are made while the mode is active.

    - `now`: bytes at this moment.
    - `peak`: the most bytes until this moment.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        for tensor in tensors:
            self._count(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._counted:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._counted[storage] = None
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.now -= size


class FusedAttention(torch.autograd.Function):
    """Keeps the tensors that CUDA's fused kernels keep: query, key, value, output, logsumexp and an additive mask.

    It computes nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        output, logsumexp = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, logsumexp, bias)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return (*map(torch.empty_like, ctx.saved_tensors[:3]), None)


class FusedDropout(torch.autograd.Function):
    """Keeps the tensor that CUDA's dropout keeps: a mask of one byte a value; computes nothing."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(torch.empty_like(values, dtype=torch.bool))
        return torch.empty_like(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return torch.empty_like(gradients[0])


def fused_dropout(values: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """In place of `torch.nn.functional.dropout`."""
    return FusedDropout.apply(values) if training and p > 0 else values


def like_cuda(monkeypatch: Any) -> None:
    """Make attention and dropout allocate as on a GPU, and let Transformers read no values of meta tensors.

    Of masks only those of shared prompts are allowed, which have two dimensions.
    """
    monkeypatch.setattr("torch.nn.functional.linear", torch._C._nn.linear)  # DeepSpeed's stage 3 leaves its own

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **_: Any) -> Any:
        assert attn_mask is None or attn_mask.dim() == 2, "the flash kernel takes no mask"
        bias = None if attn_mask is None else query.new_empty(attn_mask.shape)  # torch converts it to numbers
        return FusedAttention.apply(query, key, value, bias)

    for module in ("torch.nn.functional", "adagrpo_ray.model.shared_attention"):
        monkeypatch.setattr(f"{module}.scaled_dot_product_attention", attention)
    monkeypatch.setattr("torch.nn.functional.dropout", fused_dropout)
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
