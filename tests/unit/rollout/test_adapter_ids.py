"""vLLM's ids of adapters over several runs on one engine, with a worker whose adapters are only listed."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from adagrpo_ray.config.tree import Config
from adagrpo_ray.lora.payload import AdapterWeights, as_pairs, pack
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.rollout.engine_load import EngineLoad
from adagrpo_ray.rollout.engine_start import kept_versions
from adagrpo_ray.rollout.worker_extension import AdapterWorker
from tests.support.scripted import byte_tokenizer

R, ALPHA = 2, 4.0


class Manager:
    """vLLM's adapter manager: an id is added once, and activated into one of `slots`."""

    def __init__(self, slots: int) -> None:
        self.added: dict[int, Any] = {}
        self.active: list[int] = []
        self._slots = slots

    def list_adapters(self) -> dict[int, Any]:
        return dict(self.added)

    def remove_adapter(self, lora_id: int) -> None:
        del self.added[lora_id]
        if lora_id in self.active:
            self.active.remove(lora_id)

    def add_adapter(self, lora: Any) -> None:
        assert lora.id not in self.added, "vLLM would keep the adapter that has this id already"
        self.added[lora.id] = lora

    def activate_adapter(self, lora_id: int) -> None:
        assert len(self.active) < self._slots, "vLLM has no free slot"
        self.active.append(lora_id)


class Worker(AdapterWorker):
    def __init__(self, slots: int) -> None:
        self.manager = Manager(slots)
        self.model_runner = SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=self.manager))
        self.vllm_config = SimpleNamespace(lora_config=SimpleNamespace(lora_dtype=torch.float32))

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[str]:
        return [getattr(self, method)(*args)]


def held_pairs(manager: Any, lora_id: int, sent: Any, r: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {name: (a, b * (ALPHA / R)) for name, (a, b) in manager.added[lora_id].modules.items()}


@pytest.fixture(autouse=True)
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of vLLM that hold an adapter, and name one."""

    def load(lora_id: int, tensors: dict[str, torch.Tensor], *_: Any, **__: Any) -> Any:
        return SimpleNamespace(id=lora_id, modules=as_pairs(tensors))

    def request(name: str, lora_id: int, lora_path: str) -> Any:
        return SimpleNamespace(lora_name=name, lora_int_id=lora_id)

    contents: dict[str, dict[str, Any]] = {
        "vllm.lora.lora_model": {"LoRAModel": SimpleNamespace(from_lora_tensors=load)},
        "vllm.lora.peft_helper": {"PEFTHelper": dict},
        "vllm.lora.request": {"LoRARequest": request},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("adagrpo_ray.rollout.worker_extension.held_pairs", held_pairs)


def weights_of(run: int, version: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(100 * run + version)
    shapes = {"A": (R, 3), "B": (4, R)}
    tensors = {f"layer.lora_{x}.weight": torch.randn(shape, generator=generator) for x, shape in shapes.items()}
    return pack(version, tensors, R, ALPHA, torch.float32)


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_second_run_on_the_same_engine_gets_new_ids(max_staleness: int) -> None:
    """Its versions begin at 0 again. Each is served, and only the newest ones stay in the worker."""
    config = Config.load(overrides=["rollout.lora_mode=adapter", f"algorithm.max_staleness={max_staleness}"])
    keep = kept_versions(config.algorithm)
    worker = Worker(keep)
    started: Any = SimpleNamespace(
        engine=SimpleNamespace(collective_rpc=worker.collective_rpc),
        tokenizer=byte_tokenizer(eos_token="<|im_end|>"),
        load=EngineLoad(),
        alive=nullcontext,
    )
    engine = RolloutEngine(started, config)
    served: list[int] = []
    for run in range(3):
        for version in range(5):
            weights = weights_of(run, version)
            receipt = asyncio.run(engine.apply(weights))  # raises if the worker has other weights
            assert (receipt.version, receipt.digest) == (version, weights.digest)
            lora: Any = engine._lora
            assert lora.lora_int_id not in served
            served.append(lora.lora_int_id)
            assert sorted(worker.manager.added) == sorted(worker.manager.active) == served[-keep:]
