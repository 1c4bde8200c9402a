"""The memory of this machine's GPU, or the error if it has none."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from adagrpo_ray.errors import ResourceError
from adagrpo_ray.training.memory import gpu_memory


def test_memory_of_a_gpu_is_read_in_another_process() -> None:
    if torch.cuda.is_available():
        code = (
            "import torch; from adagrpo_ray.training.memory import gpu_memory; "
            "print(gpu_memory(), torch.cuda.is_initialized())"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert int(output[0]) >= 2**30
        assert output[1] == "False"
    else:
        with pytest.raises(ResourceError, match="CUDA does not report"):
            gpu_memory()
