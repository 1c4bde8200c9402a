"""A run on a language model: resumed, evaluated, exported, and answering in the chat."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import torch

from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.types import Completion, Prompt, SamplingParams
from adagrpo_ray.viewer.chat_model import ChatModel
from adagrpo_ray.viewer.conversation import Message, Side, render
from adagrpo_ray.viewer.offers import Base
from tests.support.program import launch, metrics
from tests.support.real_model import AGREE, REAL, SMALL, SMOLLM2, ask, configure

pytestmark = REAL

STEPS = 3
# For identical bits: sequences that are decoded in the same batch change the last bits of each other.
EXACT = (
    *("rollout.max_num_seqs=1", "checkpoint.every=1", f"checkpoint.save_total_limit={STEPS}"),
    *(f"run.steps={STEPS}", "run.name=run"),
)


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
    # Resamples at another temperature have other weights: they correct the policy that really sampled.
    as_sampled = [step for step in steps if step["trained_tokens"] and not sum(step["resamples"])]
    assert as_sampled
    for step in as_sampled:
        assert abs(step["importance_sampling_ratio_mean"] - 1) < 1e-3
    tasks = {task.name for task in configure().reasoning_gym.tasks}
    (first, *_) = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert first["accuracy_by_difficulty"].keys() <= tasks
    page = (folder / "report.html").read_text()
    assert all(name in page for name in first["accuracy_by_difficulty"])


def test_a_resumed_run_is_bitwise_identical(run: tuple[Path, str], tmp_path: Path) -> None:
    whole, _ = run
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for step in (2, 3):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:06d}")
    (folder / "checkpoints" / "latest").write_text("step-000001\n")
    settings = (*SMALL, *EXACT, "rollout.actors=2", "learner.ranks=2", "learner.zero_stage=2")
    ended = launch("--config", SMOLLM2, f"run.output_dir={tmp_path}", "--resume", "auto", *settings)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resuming after step 1" in ended.stdout
    assert metrics(folder) == metrics(whole)
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (whole / adapter).read_bytes()


def test_an_evaluation_gives_the_accuracy_of_the_run(run: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = run
    command = (sys.executable, "launch/evaluate.py", "--adapter", str(folder), "--out", str(tmp_path / "out"))
    ended = subprocess.run([*command, "rollout.max_num_seqs=1"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['eval_accuracy_after']:.3f}" in ended.stdout
    assert f"{summary['eval_accuracy_before']:.3f}" in ended.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_export_loads_in_transformers_and_vllm(
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
