"""Requirements of a machine with GPUs: each missing one is an error with its remedy, before anything loads."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adagrpo_ray.cluster import gpu_host
from adagrpo_ray.cluster.gpu_host import check_flashinfer, check_gpu_host, memory_notice
from adagrpo_ray.errors import ResourceError


@pytest.fixture(autouse=True)
def good_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU that has all requirements; returns the folder of its tools."""
    tools, headers = tmp_path / "bin", tmp_path / "include"
    for file in (tools / "gcc", headers / "Python.h"):
        file.parent.mkdir()
        file.touch(0o755)
    monkeypatch.setenv("PATH", str(tools))
    for name in ("CC", "CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(headers)})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_host, "DRIVER_FILE", tmp_path / "version")
    return tools


def refusal(check: Callable[..., None], *arguments: object) -> str | None:
    """The error of a check, or None if it raises none."""
    try:
        check(*arguments)
    except ResourceError as error:
        return str(error)
    return None


def test_a_good_host_passes(good_host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(check_gpu_host) is None
    (good_host / "gcc").unlink()
    monkeypatch.setenv("CC", "mine")
    assert refusal(check_gpu_host) is None


def test_a_machine_without_gpus_needs_nothing(good_host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (good_host / "gcc").unlink()
    assert refusal(check_gpu_host) is None


def test_the_driver_is_asked_even_if_vllm_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM sets a variable with which torch only counts GPUs, which also works with a driver that is too old."""
    variable = "PYTORCH_NVML_BASED_CUDA_CHECK"
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ.get(variable) == "1")
    assert "needs driver 580 or newer" in str(refusal(check_gpu_host))
    assert os.environ[variable] == "1"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\nGCC version:  gcc 12.2.0\n",
            "550.54.14",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n", "575.57.08"),
        (None, "of an unknown version"),
    ],
)
def test_an_old_driver_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, version: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if text is not None:
        (tmp_path / "version").write_text(text)
    with pytest.raises(ResourceError, match=rf"NVIDIA driver {version}\).* needs driver 580 or newer: update it"):
        check_gpu_host()


def test_a_missing_compiler_is_named(good_host: Path) -> None:
    (good_host / "gcc").unlink()
    with pytest.raises(ResourceError, match=r"no C compiler is on PATH.* install gcc, or name another"):
        check_gpu_host()


def test_missing_headers_of_python_are_named(tmp_path: Path) -> None:
    (tmp_path / "include" / "Python.h").unlink()
    with pytest.raises(ResourceError, match=rf"{tmp_path}/include/Python\.h is missing.* python3-dev"):
        check_gpu_host()


def test_flashinfer_needs_a_toolkit_and_tools(good_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, installed = tmp_path / "cuda", {"flashinfer"}
    monkeypatch.setattr(gpu_host, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setenv("CUDA_HOME", str(home))
    (home / "lib").mkdir(parents=True)
    (home / "lib" / "libcudart.so").touch()
    for capability in ((9, 0), (12, 0), None):
        assert refusal(check_flashinfer, capability) is None
    for missing in (home / "bin" / "nvcc", home / "lib64" / "libcudart.so", good_host / "ninja", good_host / "c++"):
        named = missing if missing.parent != good_host else f"{missing.name} on PATH"
        assert str(refusal(check_flashinfer, (10, 3))).startswith(f"{named} is missing, and FlashInfer builds")
        if missing.parent.name == "lib64":
            missing.parent.symlink_to("lib")
        else:
            missing.parent.mkdir(exist_ok=True)
            missing.touch(0o755)
    assert refusal(check_flashinfer, (10, 3)) is None


@pytest.mark.parametrize("installed", [(), ("flashinfer", "flashinfer_jit_cache")])
def test_flashinfer_that_compiles_nothing_needs_no_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...]
) -> None:
    monkeypatch.setattr(gpu_host, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert refusal(check_flashinfer, (10, 0)) is None


@pytest.mark.parametrize(("gib", "gpus", "warned"), [(16, 1, True), (24, 1, False), (16, 0, False)])
def test_little_host_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch, gib: int, gpus: int, warned: bool) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("ray._common.utils.get_system_memory", lambda: gib * 2**30)
    notice = memory_notice() or ""
    assert notice.startswith(f"warning: this machine has {gib}.0 GiB of host memory; ") == warned
    assert notice.endswith(" need 24 to 32") == warned
