"""vLLM's configuration for our engine arguments on GPUs, computed with its CUDA platform and without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.places import ROOT

PHASES = ("algorithm.sampling={temperature: 1.0, answer: {temperature: 0.5}}",)
SMALL = ("rollout.max_num_seqs=16", "rollout.max_num_batched_tokens=null", "rollout.lora_mode=merged")
PROCESSOR = "adagrpo_ray.rollout.device_phases:DevicePhaseProcessor"

ByCapability = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def resolved(model_path: str) -> tuple[ByCapability, ByCapability]:
    """vLLM's decisions for PHASES and for SMALL, from one process: its imports take most of the time."""
    command = [sys.executable, "-m", "tests.support.cuda_platform", model_path, json.dumps([PHASES, SMALL])]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    phases, small = json.loads(ended.stdout.splitlines()[-1])
    return phases, small


def test_large_gpus_get_the_second_runner_with_phases_and_adapters(resolved: tuple[ByCapability, ByCapability]) -> None:
    found, _ = resolved
    assert list(found) == ["8.9", "9.0", "10.0", "12.0"]
    for config in found.values():
        assert config["device"] == "cuda"
        assert config["worker"] == "vllm.v1.worker.gpu_worker.Worker"
        assert (config["second_runner"], config["processors"]) == (True, [PROCESSOR])
        assert (config["lora_dtype"], config["max_loras"]) == ("torch.bfloat16", 2)
        assert (config["max_num_seqs"], config["max_num_batched_tokens"]) == (256, 8192)
        assert (config["chunked_prefill"], config["async_scheduling"]) == (True, True)
        assert config["cudagraph_mode"] == "FULL_AND_PIECEWISE"
        sizes = config["capture_sizes"]
        assert sizes == [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)], "every batch of decoding has a graph"
    # The backends that vLLM prefers. FlashInfer compiles its kernels on the machine (docs/gpu.md).
    assert {name: config["attention"][0] for name, config in found.items()} == {
        "8.9": "FLASH_ATTN",
        "9.0": "FLASH_ATTN",
        "10.0": "FLASHINFER",
        "12.0": "FLASH_ATTN",
    }


def test_small_gpus_keep_the_defaults_of_vllm(resolved: tuple[ByCapability, ByCapability]) -> None:
    _, found = resolved
    for config in found.values():
        assert (config["second_runner"], config["processors"]) == (True, None)
        assert config["lora_dtype"] is None
        assert (config["max_num_seqs"], config["max_num_batched_tokens"]) == (16, 2048)
        assert config["capture_sizes"] == [1, 2, 4, 8, 16, 24, 32]
