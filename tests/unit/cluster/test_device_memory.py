"""The memory of a GPU as the process that asks for it reports it; a real GPU is in test_gpu_memory.py."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from adagrpo_ray.cluster import device_memory as module
from adagrpo_ray.cluster.device_memory import _ASK, DeviceMemory, device_memory
from adagrpo_ray.cluster.placement import Hardware
from adagrpo_ray.errors import ResourceError


def answer(monkeypatch: pytest.MonkeyPatch, code: int, output: str, error: str = "") -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, code, output, error)

    monkeypatch.setattr(module.subprocess, "run", run)


def test_free_and_all_bytes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, 0, "a warning of a library\n700 1000\n")
    assert device_memory(Hardware(8, 1)) == DeviceMemory(free=700, total=1000)


def test_a_failure_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, 1, "", "Traceback\nRuntimeError: no driver\n")
    with pytest.raises(ResourceError, match=r"CUDA does not report .* \(RuntimeError: no driver\)"):
        device_memory(Hardware(8, 1))


@pytest.mark.parametrize(
    ("used", "printed"),
    [
        ([100, 400], "900 1000"),  # the context of the process that asks takes 300
        ([], "600 1000"),  # without NVML
        ([100, 50], "600 1000"),  # another program returned more than the context takes
        ([100, 900], "1000 1000"),
    ],
)
def test_the_context_of_the_process_that_asks_counts_as_free(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], used: list[int], printed: str
) -> None:
    import torch

    def device_memory_used(device: int) -> int:
        if not used:
            raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
        return used.pop(0)

    monkeypatch.setattr(torch.cuda, "device_memory_used", device_memory_used)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 1000))
    exec(_ASK, {})
    assert capsys.readouterr().out.strip() == printed
