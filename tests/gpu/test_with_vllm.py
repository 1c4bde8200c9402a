"""vLLM and the learner together on one CUDA device; skipped if there is none."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.learner.actor import LearnerActor
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.lora.payload import pack
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.model.pretrained import load_tokenizer, resolve_model
from adagrpo_ray.rollout.actor import RolloutActor
from adagrpo_ray.rollout.pool import RolloutPool
from adagrpo_ray.training.estimate import learner_memory
from adagrpo_ray.types import Completion, GenerationRequest, Prompt, SamplingParams, TrainSample
from tests.support.engine_states import one_rank
from tests.support.program import launch, metrics
from tests.support.shapes import SHAPE

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(900),
]

LIMITS = RolloutSettings(request_timeout_s=120.0, stall_timeout_s=120.0)

# The largest difference of a token's log-probability between vLLM and the learner, by the type of the weights.
CLOSE = {"float32": 1e-3, "bfloat16": 0.2}
SERVED = (("adapter", "bfloat16"), ("merged", "bfloat16"), ("merged", "float32"))
"""Modes and types of weights; vLLM's LoRA kernels on GPUs are for 16 bits."""


def configure(*overrides: str) -> Config:
    common = ["data.train_prompts=16", "data.eval_prompts=0", "rollout.gpu_memory_utilization=0.3"]
    return Config.load(
        "launch/configs/tiny-cpu.yaml", [*common, "rollout.kv_cache_gib=null", "learner.learning_rate=0.01", *overrides]
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 as wide as the one of 1.7 billion parameters, four layers of it, with random weights."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tiny, folder = resolve_model(configure()), tmp_path_factory.mktemp("wide")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    shape = Qwen3Config(
        vocab_size=SHAPE.vocabulary,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.intermediate,
        num_hidden_layers=4,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        head_dim=SHAPE.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    for file in Path(tiny).glob("*token*"):
        shutil.copy(file, folder)
    for file in Path(tiny).glob("*.jinja"):
        shutil.copy(file, folder)
    return folder


def ask(prompt: Prompt, seed: int) -> GenerationRequest:
    return GenerationRequest(prompt.id, prompt.token_ids, 8, SamplingParams(), 64, seed)


def as_samples(prompt: Prompt, completions: tuple[Completion, ...]) -> list[TrainSample]:
    rng = np.random.default_rng(0)
    return [
        TrainSample(
            prompt.token_ids, c.token_ids, c.logprobs, np.full(len(c.token_ids), 1 / 300, np.float32), rng.normal()
        )
        for c in completions
    ]


def start(config: Config) -> tuple[Any, RolloutPool, str]:
    path = resolve_model(config)
    actor = ray.remote(num_gpus=0.5)(RolloutActor).remote()
    ray.get(actor.start.remote(ModelFiles(path), 512, config))
    return actor, RolloutPool([actor], LIMITS), path


def stop(actor: Any) -> None:
    ray.get(actor.stop.remote())
    ray.kill(actor)


@pytest.mark.parametrize("eager", ["true", "false"])
@pytest.mark.parametrize(("sync", "dtype"), SERVED)
def test_logprobs_agree_before_and_after_a_step(cluster: None, sync: str, dtype: str, eager: str) -> None:
    config = configure(f"rollout.lora_mode={sync}", f"model.dtype={dtype}", f"rollout.enforce_eager={eager}")
    actor, pool, path = start(config)
    prompt = load_prompts(config, load_tokenizer(path, config.model, config.data)).train[0]
    learner = one_rank(path, config)
    gaps, moved = [], 0.0
    for version in range(2):
        weights = pack(version, learner.adapter(), 16, 32.0, getattr(torch, dtype))
        asyncio.run(pool.apply(weights))
        completions = asyncio.run(pool.generate(ask(prompt, seed=version)))
        samples = as_samples(prompt, completions)
        own = learner.logprobs(tuple(samples))
        gaps.append(max(float(np.abs(o - c.logprobs).max()) for o, c in zip(own, completions, strict=True)))
        learner.train(pack_batches(1, samples, 1, 4096, learner.packing)[0])
        after = learner.logprobs(tuple(samples))
        moved = max(moved, *(float(np.abs(o - a).max()) for o, a in zip(own, after, strict=True)))
    stop(actor)
    assert max(gaps) < CLOSE[dtype]
    assert moved > CLOSE[dtype], "the step must move the policy further than the two may differ"


@pytest.mark.parametrize(("sync", "dtype"), SERVED)
def test_a_sleeping_engine_releases_the_gpu_and_serves_the_same_afterwards(
    cluster: None, sync: str, dtype: str
) -> None:
    config = configure(f"rollout.lora_mode={sync}", f"model.dtype={dtype}", "rollout.sleep=true")
    actor, pool, path = start(config)
    prompt = load_prompts(config, load_tokenizer(path, config.model, config.data)).train[0]
    learner = one_rank(path, config)
    weights = pack(0, learner.adapter(), 16, 32.0, getattr(torch, dtype))
    asyncio.run(pool.apply(weights))
    before = asyncio.run(pool.generate(ask(prompt, seed=1)))

    awake, total = torch.cuda.mem_get_info()
    asyncio.run(pool.sleep())
    asleep, _ = torch.cuda.mem_get_info()
    assert asleep - awake > 0.8 * config.rollout.gpu_memory_utilization * total - 2**31, "2 GiB may stay in use"

    asyncio.run(pool.wake())
    asyncio.run(pool.apply(pack(1, learner.adapter(), 16, 32.0, getattr(torch, dtype))))
    after = asyncio.run(pool.generate(ask(prompt, seed=1)))
    stop(actor)
    assert [c.text for c in after] == [c.text for c in before]
    for one, two in zip(before, after, strict=True):
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-3)


@pytest.mark.parametrize("sync", ["adapter", "merged"])
@pytest.mark.parametrize("sleep", ["true", "false"])
@pytest.mark.parametrize("eager", ["true", "false"])
def test_real_steps_on_a_model_of_real_width(
    wide_model: Path, tmp_path: Path, sync: str, sleep: str, eager: str
) -> None:
    ended = launch(
        "--config",
        "launch/configs/tiny-cpu.yaml",
        f"run.output_dir={tmp_path}",
        "run.name=wide",
        "run.steps=2",
        f"model.path={wide_model}",
        "model.dtype=bfloat16",
        "data.eval_prompts=0",
        "algorithm.name=grpo",  # which trains on groups that all fail, by the KL term alone
        "algorithm.loss.beta=0.04",
        "rewards.functions=[{function: format_approximate}]",
        "rollout.max_new_tokens=64",
        "rollout.kv_cache_gib=null",
        "rollout.gpu_memory_utilization=0.3",
        f"rollout.sleep={sleep}",
        f"rollout.enforce_eager={eager}",
        f"rollout.lora_mode={sync}",
        "learner.gradient_checkpointing=true",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ("vLLM sleeps while the learner trains" in ended.stdout) == (sleep == "true")
    steps = metrics(tmp_path / "wide")
    assert [s["weight_version"] for s in steps] == [1, 2]
    assert all(s["trained_tokens"] > 0 for s in steps)
    assert all(s["sampling_logp_difference_mean"] < 0.05 for s in steps)
    assert json.loads((tmp_path / "wide" / "summary.json").read_text())["steps"] == 2


def test_an_actor_of_a_rank_uses_the_gpu(cluster: None) -> None:
    config = configure("model.dtype=bfloat16")
    actor = ray.remote(num_gpus=0.5)(LearnerActor).remote()
    free, _ = torch.cuda.mem_get_info()
    ray.get(actor.start.remote(config, 0, ModelFiles(resolve_model(config)), ray.get(actor.address.remote())))
    left, _ = torch.cuda.mem_get_info()
    ray.kill(actor)
    assert left < free


def test_a_learner_returns_memory_and_alone_has_expandable_segments(cluster: None) -> None:
    """The actor of a rank shares the GPU with an engine, whose process has the allocator's usual settings."""

    class Rank(LearnerActor):
        def settings(self) -> tuple[bool, int]:
            torch.zeros(2**28, dtype=torch.uint8, device="cuda")  # freed at once, and cached
            self._shared = True
            self._return_memory()
            cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return bool(torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"]), cached

        def variables(self) -> dict[str, str]:
            return {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")}

    config = configure("model.dtype=bfloat16", "rollout.sleep=true")
    engine, pool, path = start(config)  # vLLM's sleep mode asserts that its pool has no such segments
    actor = ray.remote(num_gpus=0.5)(Rank).remote()
    ray.get(actor.start.remote(config, 0, ModelFiles(path), ray.get(actor.address.remote())))
    expandable, cached = ray.get(actor.settings.remote())
    assert expandable
    assert cached < 2**27
    assert ray.get(actor.variables.remote()) == {}
    asyncio.run(pool.sleep())
    asyncio.run(pool.wake())
    ray.kill(actor)
    stop(engine)


def test_peak_of_an_update_is_that_of_the_estimate(wide_model: Path) -> None:
    config = configure(
        f"model.path={wide_model}",
        "model.dtype=bfloat16",
        "model.lora.dropout=0.1",
        "learner.packing=padded",
        "learner.micro_batch_tokens=4096",
        "learner.gradient_checkpointing=true",
        "rollout.max_new_tokens=4000",
        "algorithm.num_iterations=1",
        "algorithm.num_mini_batches=1",
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1000, 4096).astype(np.int32)
    logprobs, weights = np.full(4000, -11.9, np.float32), np.full(4000, 1 / 4000, np.float32)
    samples = [TrainSample(tokens[:96], tokens[96:], logprobs, weights, 1.0)]
    learner = one_rank(str(wide_model), config)
    batch = pack_batches(1, samples, 1, 4096, learner.packing)[0]
    learner.train(batch)
    torch.cuda.reset_peak_memory_stats()
    learner.train(batch)
    estimate = learner_memory(replace(SHAPE, layers=4), config)
    assert torch.cuda.max_memory_allocated() == pytest.approx(estimate.peak - estimate.process, rel=0.05)
