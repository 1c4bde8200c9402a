"""Episodes on real vLLM, DeepSpeed and Ray: log-probabilities, resuming, failures, and the examples that learn."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.data.lengths import longest_sequence
from adagrpo_ray.environments.episodes import Episodes
from adagrpo_ray.environments.opening import load_episode_prompts
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.lora.payload import pack
from adagrpo_ray.model.pretrained import load_tokenizer, resolve_model
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.types import Completion, GenerationRequest, Prompt, SamplingParams, TrainSample
from tests.support.engine_states import one_rank
from tests.support.held import assert_same_run
from tests.support.program import launch, metrics, settings

pytestmark = pytest.mark.long

CALCULATOR, GUESSING = "launch/configs/tiny-calculator.yaml", "launch/configs/tiny-guessing.yaml"
AGREE = 1e-4
"""Largest difference between log-probabilities of the engine and of the learner, in float32."""


def as_sample(prompt: Prompt, episode: Completion, advantage: float) -> TrainSample:
    assert episode.observed is not None
    weights = np.where(episode.observed, 0.0, 1 / 200).astype(np.float32)
    return TrainSample(
        prompt.token_ids, episode.token_ids, episode.logprobs, weights, advantage, observed=episode.observed
    )


def difference(learner: Any, samples: tuple[TrainSample, ...]) -> float:
    """Largest difference between the learner's and the engine's log-probabilities of tokens that the policy wrote."""
    found = learner.logprobs(samples)
    return max(
        float(np.abs(logprobs - sample.written(sample.behaviour_logprobs)).max())
        for logprobs, sample in zip(found, samples, strict=True)
    )


@pytest.mark.parametrize("packing", ["padded", "packed", "shared"])
def test_logprobs_of_masked_episodes_agree_before_and_after_a_step(packing: str) -> None:
    """In every layout of the learner, with rollouts in mode `merged`."""
    few = ("data.train_prompts=4", "data.eval_prompts=0", "algorithm.prompts_per_step=4")
    config = Config.load(GUESSING, ["learner.learning_rate=0.01", f"learner.packing={packing}", *few])
    path = resolve_model(config)
    tokenizer = load_tokenizer(path, config.model, config.data)
    prompts = load_episode_prompts(config, tokenizer, path).train
    learner = one_rank(path, config)

    async def work() -> tuple[float, float, float]:
        engine = await RolloutEngine.start(path, longest_sequence(config, prompts), config)
        scorer: Any = None
        episodes = Episodes(config, prompts, tokenizer, path, engine.generate, scorer)
        try:

            async def sync(version: int) -> None:
                lora = config.model.lora
                await engine.apply(pack(version, learner.adapter(), lora.r, lora.alpha, torch.float32))

            async def drawn(seed: int) -> tuple[TrainSample, ...]:
                asked = [GenerationRequest(p.id, p.token_ids, 4, SamplingParams(), 16, seed) for p in prompts]
                groups = await asyncio.gather(*(episodes.generate(each) for each in asked))
                return tuple(
                    as_sample(prompt, episode, (-1.0) ** number)
                    for prompt, group in zip(prompts, groups, strict=True)
                    for number, episode in enumerate(group)
                )

            await sync(0)
            before = await drawn(1)
            assert sum(int(sample.observed.sum()) for sample in before if sample.observed is not None) > 50
            assert len({len(sample.token_ids) for sample in before}) > 1
            agreed = difference(learner, before)
            learner.train(pack_batches(1, before, 1, 4096, packing)[0])  # type: ignore[arg-type]
            moved = difference(learner, before)
            await sync(1)
            return agreed, moved, difference(learner, await drawn(2))
        finally:
            episodes._host.close()
            await engine.stop()

    agreed, moved, again = asyncio.run(work())
    assert agreed < AGREE
    assert moved > 1e-3, "the step must have moved the policy, or this test shows nothing"
    assert again < AGREE


SHORT = ("environment.max_turns=3", "algorithm.group_size=2")
"""Episodes that are shorter than a block of the KV cache: else turns of others in the prefix cache change last bits."""


def run(config: str, folder: Path, steps: int, *options: str) -> Path:
    """Run to the end; the folder. Checks that no process is left."""
    command = ("--config", config, *settings(folder, steps), "checkpoint.every=1", *SHORT, *options)
    ended = launch(*command)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "run"


@pytest.mark.timeout(1200)
def test_run_with_environments_resumes_byte_for_byte(tmp_path: Path) -> None:
    """Groups that wait for a resample are in the checkpoint, with the turns and masks of their episodes."""
    every_rung = "algorithm.allocation.judge_rungs=false"  # so that groups wait, whatever the seed draws
    whole = run(GUESSING, tmp_path / "whole", 4, every_rung)
    run(GUESSING, tmp_path / "parts", 2, every_rung)
    waiting = json.loads((tmp_path / "parts" / "run" / "checkpoints" / "step-000002" / "sampler.json").read_text())
    assert waiting["waiting"]
    resumed = run(GUESSING, tmp_path / "parts", 4, every_rung, "--resume", "auto")
    assert_same_run(resumed, whole)
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    turns = [c["turns"] for s in samples for a in s["attempts"] for c in a["completions"]]
    assert all(turns)
    assert any(len(each) > 1 for each in turns)


@pytest.mark.timeout(900)
def test_failures_of_environments_are_counted_and_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_xyz.py").write_text(
        "from adagrpo_ray.environments.guessing import Guessing\n\n\n"
        "class Sometimes(Guessing):\n"
        "    def step(self, message):\n"
        "        if self._hidden < 3:\n"
        "            raise ValueError('no game today')\n"
        "        return super().step(message)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = run(
        GUESSING, tmp_path / "runs", 2, "environment.name=fails_xyz:Sometimes", "algorithm.prompts_per_step=16"
    )
    steps = metrics(folder)
    assert sum(step["groups_failed"] for step in steps) > 0
    assert all(step["groups_ready"] + step["groups_exhausted"] + step["groups_waiting"] > 0 for step in steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("config", "most_before", "least_after", "least_gain"),
    [(CALCULATOR, 0.3, 0.8, 0.0), (GUESSING, 0.5, 0.0, 0.25)],
)
def test_tiny_model_learns(
    tmp_path: Path, config: str, most_before: float, least_after: float, least_gain: float
) -> None:
    """To call the calculator, and to halve the range."""
    ended = launch("--config", config, f"run.output_dir={tmp_path}", "run.name=run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    before, after = summary["eval_accuracy_before"], summary["eval_accuracy_after"]
    assert before < most_before
    assert after > max(least_after, before + least_gain)
