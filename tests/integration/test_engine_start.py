"""Real engines that do not start, or die: the error has the cause, which is only in the output of another process."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ActorLostError, RolloutError
from adagrpo_ray.lora.payload import pack
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.rollout.engine_start import start_engine
from adagrpo_ray.training.preflight import check
from adagrpo_ray.types import GenerationRequest, SamplingParams
from tests.support.held import engines
from tests.support.program import QUICK

pytestmark = pytest.mark.long

LENGTH = 256


def start(base: Path, *overrides: str) -> RolloutEngine:
    config = Config.load("launch/configs/tiny-cpu.yaml", [*QUICK, f"model.path={base}", *overrides])
    check(config)  # which does not see it
    return RolloutEngine(start_engine(str(base), LENGTH, config, None), config)


def cut(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name][:, :7].clone()


def odd(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.stray.weight"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("harm", "overrides", "cause"),
    [
        (cut, (), r"Error: .*(size|shape|dimension)"),
        (odd, (), r"Error: .*stray"),
        (None, ("rollout.kv_cache_gib=0.000001",), r"No available memory for .* or rollout\.kv_cache_gib here"),
    ],
)
def test_the_error_of_an_engine_that_does_not_start_has_the_cause(
    tiny_model: Path,
    tmp_path: Path,
    harm: Callable[[dict[str, torch.Tensor]], Any] | None,
    overrides: tuple[str, ...],
    cause: str,
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    if harm is not None:
        tensors = load_file(base / "model.safetensors")
        harm(tensors)
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RolloutError, match=rf"vLLM does not start with model\.path='{base}': .*{cause}") as refused:
        start(base, *overrides)
    assert "root cause" not in str(refused.value)
    assert "output is in" in str(refused.value)


@pytest.mark.faults
def test_a_killed_engine_raises_actor_lost_error(tiny_model: Path) -> None:
    engine = start(tiny_model)

    async def scenario() -> None:
        await engine.warm_up()
        cores = engines()
        assert cores
        for core in cores:
            core.kill()
        try:
            for _ in range(100):  # until vLLM has noticed
                await engine.warm_up()
        finally:
            await engine.stop()

    with pytest.raises(ActorLostError, match=r"its vLLM engine died \(its process ended without an error, like a"):
        asyncio.run(scenario())


@pytest.mark.faults
def test_a_request_that_reaches_a_stopped_engine_raises_actor_lost_error(tiny_model: Path) -> None:
    """One request may find an actor lost and have it stopped while another one is on its way there."""
    engine = start(tiny_model)
    request = GenerationRequest("late", np.zeros(4, np.int32), 1, SamplingParams(), 2, seed=0)

    async def scenario() -> None:
        await engine.warm_up()
        await engine.stop()
        for late in (
            engine.generate(request),
            engine.apply(pack(1, {}, 16, 32.0, torch.float32)),
            engine.sleep(),
            engine.wake(),
        ):
            with pytest.raises(ActorLostError, match="its vLLM engine was stopped"):
                await late

    asyncio.run(scenario())
