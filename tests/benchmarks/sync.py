"""Measures the time until rollout actors serve a new adapter of a 1.7 B model: python tests/benchmarks/sync.py.

The adapter is sent as in training (pack, object store, RolloutPool.apply, digest read back) to real actors with a base
model of Qwen3-1.7B's shapes and random weights. Writes runs/bench/sync.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.lora.payload import PEFT_PREFIX, AdapterWeights, pack
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.model.pretrained import load_tokenizer, resolve_model
from adagrpo_ray.model.shape import Shape, shape_of
from adagrpo_ray.rollout.actor import RolloutActor
from adagrpo_ray.rollout.engine import SyncReceipt
from adagrpo_ray.rollout.pool import RolloutPool

# Qwen3-1.7B with a smaller vocabulary, since embeddings have no adapter.
QWEN3 = {
    "hidden_size": 2048,
    "num_hidden_layers": 28,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 1024,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
MAX_MODEL_LEN = 256  # tokens
STOP_TIMEOUT_S = 30.0
MODES = ("adapter", "merged")


class TimedActor(RolloutActor):
    """A rollout actor that measures the time of its last `apply`."""

    async def apply(self, weights: AdapterWeights) -> SyncReceipt:
        began = time.perf_counter()
        receipt = await super().apply(weights)
        self._seconds = time.perf_counter() - began
        return receipt

    async def seconds(self) -> float:
        return self._seconds


def settings(mode: str, folder: Path) -> Config:
    changes = {"model.path": folder, "model.dtype": "bfloat16", "rollout.lora_mode": mode, "rollout.kv_cache_gib": 0.25}
    return Config.load("launch/configs/tiny-cpu.yaml", [f"{key}={value}" for key, value in changes.items()])


def write_base_model(folder: Path) -> Shape:
    """Write the base model in bfloat16 (about 2.8 GB) with the tiny model's tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**QWEN3)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    # Sampling all weights would take a minute, so that a few million values are repeated.
    some = (0.02 * torch.randn(2**22, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data.fill_(1.0)
        else:
            weight.data.view(-1).copy_(some.repeat(-(-weight.numel() // some.numel()))[: weight.numel()])
    model.save_pretrained(folder)
    tiny = Config.load("launch/configs/tiny-cpu.yaml")
    load_tokenizer(resolve_model(tiny), tiny.model, tiny.data).save_pretrained(folder)
    return shape_of(config)


def random_adapter(shape: Shape, r: int, targets: tuple[str, ...], seed: int) -> dict[str, torch.Tensor]:
    """A random adapter in the form of `LearnerEngine.adapter`: float32, with the keys of PEFT's files."""
    generator, tensors = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
    for layer in range(shape.layers):
        for name in targets:
            inputs, outputs = shape.linear[name]
            parent = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            module = f"{PEFT_PREFIX}model.layers.{layer}.{parent}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(r, inputs, generator=generator) / inputs**0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, r, generator=generator) / 100
    return tensors


def measure(config: Config, shape: Shape, actors: int, versions: int) -> dict[str, Any]:
    """Medians over the versions, and the values of each version, in seconds; "apply" is that of the slowest actor."""
    lora, dtype = config.model.lora, getattr(torch, config.model.dtype)
    remote = ray.remote(num_cpus=config.rollout.cpus, max_concurrency=8)(TimedActor)
    handles = [remote.remote() for _ in range(actors)]
    seconds: dict[str, list[float]] = {"pack": [], "put": [], "apply": [], "whole": []}
    try:
        starts = [actor.start.remote(ModelFiles(config.model.path), MAX_MODEL_LEN, config) for actor in handles]
        ray.get(starts, timeout=config.rollout.start_timeout_s)
        pool = RolloutPool(handles, config.rollout)
        for version in range(versions):
            tensors = random_adapter(shape, lora.r, lora.targets, seed=version)
            began = time.perf_counter()
            weights = pack(version, tensors, lora.r, lora.alpha, dtype)
            packed = time.perf_counter()
            receipts = asyncio.run(pool.apply(weights))  # raises if a digest differs
            applied = time.perf_counter()
            reference = ray.put(weights)  # a second time, since the put in the pool cannot be timed separately
            put = time.perf_counter()
            del reference
            seconds["pack"].append(packed - began)
            seconds["put"].append(put - applied)
            seconds["apply"].append(max(ray.get([actor.seconds.remote() for actor in handles])))
            seconds["whole"].append(applied - began)
    finally:
        stops = [actor.stop.remote() for actor in handles]
        ray.wait(stops, num_returns=len(stops), timeout=STOP_TIMEOUT_S)
        for actor in handles:
            ray.kill(actor)
    return {
        "bytes": weights.data.nbytes,
        "digests_read_back": [receipt.digest for receipt in receipts],
        **{f"{name}_s": statistics.median(values) for name, values in seconds.items()},
        "versions_s": seconds,
    }


def table(metrics: dict[str, Any]) -> str:
    """One line for each mode."""
    lines = [f"{'mode':10}{'MB':>8}{'pack s':>10}{'put s':>10}{'apply s':>10}{'whole s':>10}"]
    for mode, f in metrics["modes"].items():
        if "error" in f:
            lines.append(f"{mode:10}{f['error']}")
        else:
            parts = "".join(f"{f[f'{name}_s']:10.3f}" for name in ("pack", "put", "apply", "whole"))
            lines.append(f"{mode:10}{f['bytes'] / 1e6:8.1f}{parts}")
    return "\n".join(lines)


def run(actors: int, versions: int) -> dict[str, Any]:
    """The metrics of both modes, measured one after the other; only an "error" for a mode that fails."""
    metrics: dict[str, Any] = {"actors": actors, "versions": versions, "shape": QWEN3, "modes": {}}
    with tempfile.TemporaryDirectory() as name:
        shape = write_base_model(Path(name))
        ray.init(
            address="local",
            num_cpus=max(2, actors),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            for mode in MODES:
                try:
                    metrics["modes"][mode] = measure(settings(mode, Path(name)), shape, actors, versions)
                except Exception as error:
                    last = (str(error).strip().splitlines() or [""])[-1]
                    metrics["modes"][mode] = {"error": f"{type(error).__name__}: {last}"}
        finally:
            ray.shutdown()
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, default=1, help="rollout actors; one with mode merged takes about 10 GiB")
    parser.add_argument("--versions", type=int, default=5, help="number of adapters to send, one after the other")
    given = parser.parse_args()
    metrics = run(given.actors, given.versions)
    print(table(metrics))
    out = Path("runs/bench/sync.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
