"""The memory of this machine's GPU, or the error if it has none; and that of the machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from adagrpo_ray.cluster.device_memory import device_memory, gpu_memory
from adagrpo_ray.cluster.placement import Hardware
from adagrpo_ray.errors import ResourceError


def test_memory_of_a_gpu_is_read_in_another_process() -> None:
    if torch.cuda.is_available():
        code = (
            "import torch; from adagrpo_ray.cluster.device_memory import gpu_memory; m = gpu_memory(); "
            "print(m.free, m.total, torch.cuda.is_initialized())"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert 0 < int(output[0]) <= int(output[1])
        assert int(output[1]) >= 2**30
        assert output[2] == "False"
    else:
        with pytest.raises(ResourceError, match="CUDA does not report"):
            gpu_memory()


def test_memory_of_this_machine() -> None:
    memory = device_memory(Hardware(2, 0))
    assert memory.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.free <= memory.total
