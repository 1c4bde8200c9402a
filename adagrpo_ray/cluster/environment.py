"""Changes of this process: environment variables, which children inherit, and the garbage collector."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the block, and restore them after it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def collector_off() -> Iterator[None]:
    """Turn off Python's garbage collector within the block.

    The collector scans all objects many times while large packages are imported. Without it the import of vLLM takes a
    quarter less CPU time (13 s in place of 18 s on one core).
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def keep_compiled() -> None:
    """Let the compilers of GPU kernels keep their results in $XDG_CACHE_HOME, if it is set, as vLLM does by itself.

    By default they are in the home folder or in /tmp, which a container loses; each start then compiles for minutes.
    Variables that are set already stay. Sources of the names: CUDA's programming guide, `triton/knobs.py`,
    `torch/_inductor/runtime/cache_dir_utils.py` and `flashinfer/jit/env.py`.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        return
    os.environ.setdefault("CUDA_CACHE_PATH", f"{cache}/cuda")
    os.environ.setdefault("TRITON_CACHE_DIR", f"{cache}/triton")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{cache}/torchinductor")
    os.environ.setdefault("FLASHINFER_WORKSPACE_BASE", cache)  # which appends .cache/flashinfer


def vllm_defaults() -> None:
    """Set environment variables of vLLM, but for those that are set already. Call it before vLLM is imported.

    vLLM spawns its processes, which it always does on CPUs. A fork could copy locks that threads of this process hold,
    and cannot use CUDA once this process has asked the driver, as `check_gpu_host` does.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
