"""Temporary changes of the process."""

from __future__ import annotations

import gc
import os

import pytest

from adagrpo_ray.cluster import connecting as cluster
from adagrpo_ray.cluster.environment import collector_off, keep_compiled, vllm_defaults
from adagrpo_ray.cluster.placement import Hardware


@pytest.mark.parametrize("before", [True, False])
def test_collector_is_off_in_block_and_restored(before: bool) -> None:
    was_on = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        with collector_off():
            assert not gc.isenabled()
        assert gc.isenabled() is before
    finally:
        (gc.enable if was_on else gc.disable)()


def test_idle_threads_wait_without_gpu_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert cluster._threads(Hardware(2, 0)) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert cluster._threads(Hardware(2, 1)) == {}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert cluster._threads(Hardware(2, 0)) == {}


def test_compilers_keep_their_results_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE")
    for name in names:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    for nowhere in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", nowhere)
        keep_compiled()
        assert not any(name in os.environ for name in names)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    keep_compiled()
    assert [os.environ[name] for name in names] == ["/cache/cuda", "/mine", "/cache/torchinductor", "/cache"]


def test_vllm_spawns_its_processes_unless_it_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS", "VLLM_WORKER_MULTIPROC_METHOD")
    for name in names:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    vllm_defaults()
    assert [os.environ[name] for name in names] == ["ERROR", "1", "spawn"]
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    vllm_defaults()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"
