"""The memory of a learner's GPU: torch's allocator, the bytes that are left, and the return of cached ones."""

from __future__ import annotations

import os

import torch

CONFIGURED = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables by which users configure torch's allocator."""


def use_expandable_segments() -> None:
    """Let torch's CUDA allocator extend its segments, so that tensors of changing sizes leave fewer gaps.

    Does nothing if the user has configured the allocator. It changes this process only and sets no variable, since
    vLLM's sleep mode cannot use such segments (pytorch issue 147851), and other processes inherit variables.
    """
    if not any(os.environ.get(name) for name in CONFIGURED):
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")


def free_bytes(device: torch.device) -> int | None:
    """The bytes that new tensors may have on a GPU: those that are free, and those that torch caches. None on CPUs."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def release() -> None:
    """Return the memory that torch caches to the GPU, for another process on it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
