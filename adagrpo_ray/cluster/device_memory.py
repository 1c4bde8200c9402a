"""The memory of this machine's GPU or, without GPUs, of the machine: the bytes that are free, and all bytes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from adagrpo_ray.cluster.placement import Hardware
from adagrpo_ray.errors import ResourceError

# The CUDA context of the process that asks takes a few hundred MiB, which NVML shows. They are free again afterwards.
_ASK = """
import torch
try:
    before = torch.cuda.device_memory_used(0)
except Exception:
    before = None
free, total = torch.cuda.mem_get_info(0)
if before is not None:
    free = min(total, free + max(0, torch.cuda.device_memory_used(0) - before))
print(free, total)
"""


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one GPU, or of a machine without GPUs. vLLM takes a share of `total`, and all parts need `free`."""

    free: int
    total: int


def device_memory(hardware: Hardware) -> DeviceMemory:
    """The memory of one of this machine's GPUs or, without GPUs, of the machine.

    Raises ResourceError as `gpu_memory`.
    """
    if hardware.gpus > 0:
        return gpu_memory()
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())  # such as "MemTotal: 16 kB"
    sizes = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
    return DeviceMemory(free=sizes["MemAvailable"], total=sizes["MemTotal"])


def gpu_memory() -> DeviceMemory:
    """The memory of this machine's first GPU. Raises ResourceError if CUDA does not report it."""
    # In another process: the CUDA context that this needs would stay in the driver for the whole run.
    ended = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise ResourceError(
            f"CUDA does not report the memory of this machine's GPU ({reason}); look at it with nvidia-smi"
        )
    free, total = ended.stdout.split()[-2:]
    return DeviceMemory(int(free), int(total))
