"""Requirements of a machine with GPUs: checks that take milliseconds and open no CUDA context."""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from adagrpo_ray.cluster.environment import environment
from adagrpo_ray.errors import ResourceError

DRIVER = 580
"""The first major version of NVIDIA's driver for the pinned torch, which is built for CUDA 13.0."""
HOST_MEMORY = 24 * 2**30
"""Bytes of host memory below which a run of Qwen3-1.7B on one GPU may end without an error (docs/gpu.md)."""
DRIVER_FILE = Path("/proc/driver/nvidia/version")


def check_gpu_host() -> None:
    """Check that the GPUs of this machine, if it has some, can be used, and that their kernels can be compiled.

    Raises ResourceError with the remedy if the driver is too old for torch, or if there is no C compiler or Python.h.
    """
    import torch

    if torch.cuda.device_count() == 0:  # by the driver's library, which counts them even if CUDA cannot start
        return
    # vLLM and DeepSpeed set this variable, and torch then asks only the library that has just counted the GPUs.
    with environment({"PYTORCH_NVML_BASED_CUDA_CHECK": "0"}):
        usable = torch.cuda.is_available()  # after which a fork of this process cannot use CUDA
    if not usable:
        raise ResourceError(
            f"torch {torch.__version__} cannot use the GPUs of this machine (NVIDIA driver {_driver()}); CUDA "
            f"{torch.version.cuda} needs driver {DRIVER} or newer: update it, and look at it with nvidia-smi"
        )
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise ResourceError(
            "no C compiler is on PATH, and Triton compiles the launchers of its GPU kernels with one; install gcc, or "
            "name another compiler by the environment variable CC"
        )
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        raise ResourceError(
            f"{header} is missing, and Triton compiles the launchers of its GPU kernels with it; install the headers "
            "of this Python (the package python3-dev on Debian and Ubuntu)"
        )


def check_flashinfer(capability: tuple[int, int] | None) -> None:
    """Check that FlashInfer can build its kernels on a GPU for which vLLM prefers it, those of capability 10.x.

    It compiles and links them with a CUDA toolkit (`flashinfer/jit/cpp_ext.py`), unless they are in the package
    flashinfer-jit-cache. The toolkit that pip installs lacks the name `lib64/libcudart.so`.

    vLLM takes FlashInfer for attention if its package is installed, even if vLLM logs that kernels of FlashInfer are
    disabled: it asks `has_flashinfer` about other kernels only (vLLM 0.32, `CudaPlatformBase.get_valid_backends`).
    Raises ResourceError with the remedy if something is missing.
    """
    if capability is None or capability[0] != 10:
        return
    if find_spec("flashinfer") is None or find_spec("flashinfer_jit_cache") is not None:
        return
    nvcc = shutil.which("nvcc")
    found = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or (nvcc and str(Path(nvcc).parents[1]))
    home = Path(found or "/usr/local/cuda")
    missing = [str(file) for file in (home / "bin" / "nvcc", home / "lib64" / "libcudart.so") if not file.exists()]
    tools = ("ninja",) if os.environ.get("CXX") else ("ninja", "c++")
    missing += [f"{tool} on PATH" for tool in tools if shutil.which(tool) is None]
    if missing:
        raise ResourceError(
            f"{missing[0]} is missing, and FlashInfer builds its kernels for this GPU with it; run `vllm "
            "download-kernels`, or set CUDA_HOME to a whole toolkit (docs/gpu.md has the links for that of pip), and "
            "put ninja and g++ on PATH"
        )


def memory_notice() -> str | None:
    """A warning if this machine has GPUs and little host memory, else None."""
    import torch
    from ray._common.utils import get_system_memory  # the memory limit of a container counts, too

    if torch.cuda.device_count() == 0 or (memory := get_system_memory()) >= HOST_MEMORY:
        return None
    return (
        f"warning: this machine has {memory / 2**30:.1f} GiB of host memory; vLLM and the learner of a model of 1.7 "
        f"billion parameters need {HOST_MEMORY / 2**30:.0f} to 32"
    )


def _driver() -> str:
    """The version of NVIDIA's driver, if it can be read."""
    try:
        found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", DRIVER_FILE.read_text())
    except OSError:
        found = None
    return found[0] if found else "of an unknown version"
