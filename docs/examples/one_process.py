"""Adaptive GRPO in one process, without Ray: read this first.

    .venv/bin/python docs/examples/one_process.py [STEPS]

A tiny model learns additions for a few steps. The parts are the library's own, and those of a real run (`make train`):
there they live in Ray actors, and a trainer calls them; here one loop calls them. Each step has six phases:

    sample      vLLM draws a group of completions for each prompt
    score       reward functions score the completions of the group
    resample    a group without a correct completion is sampled again, with more aggressive parameters
    advantages  each completion gets its advantage from the rewards of all attempts of its group
    train       DeepSpeed updates the LoRA adapter
    sync        the adapter is sent to the vLLM engine, which proves by a digest that it holds it
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Generation and training take turns on the same cores: idle threads of one half must not spin against the other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.config import Config
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.data.prompts import PromptSets, load_prompts
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.updates import TrainReport
from adagrpo_ray.lora.payload import pack
from adagrpo_ray.model.pretrained import load_tokenizer, resolve_model
from adagrpo_ray.rewards.registry import Scores, load_reward, score_group
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.sampling.batch import training_samples
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import Completion, GenerationRequest, Prompt, TrainSample

CONFIG = Path(__file__).parents[2] / "launch" / "configs" / "tiny-cpu.yaml"


def settings(steps: int) -> Config:
    """The settings of `make train`, on fewer prompts, and with the resamples in the same step."""
    return Config.load(
        CONFIG,
        {
            "run.steps": steps,
            "data.train_prompts": 64,
            "data.eval_prompts": 0,
            "algorithm.prompts_per_step": 8,
            "algorithm.resample": "immediate",  # the default defers a resample to the next step's requests
        },
    )


class Step:
    """The parts of a run, and one step over them."""

    def __init__(self, config: Config, prompts: PromptSets, rollout: RolloutEngine, learner: LearnerEngine) -> None:
        self.config, self.rollout, self.learner = config, rollout, learner
        self.rewards = [(load_reward(f.name), f.weight) for f in config.rewards.functions]
        self.method = make_method(config.algorithm, config.rewards.names)
        # The sampler knows neither vLLM nor Ray: it gets two callables. A real run hands it the router over all
        # rollout actors, and a pool of scoring processes.
        self.sampler = AdaptiveSampler(
            config.algorithm,
            self.method,
            PromptOrder(prompts.train, config.run.seed, config.data.shuffle, prompts.template),
            self.sample,
            self.score,
            max_new_tokens=config.rollout.max_new_tokens,
            seed=config.run.seed,
        )

    async def sample(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Sample: one request is one group, n completions of the same prompt under the weights in force.

        A completion holds its tokens, their log-probabilities under the distribution that they were drawn from, and
        the version of the weights.
        """
        return await self.rollout.generate(request)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        """Score: the weighted sum of the reward functions for each completion, and which completions are correct."""
        scores = score_group(
            self.rewards,
            completions=[completion.text for completion in completions],
            answer=prompt.answer,
            prompt=prompt.text,
            format=self.config.data.format,
            difficulty=prompt.difficulty,
            columns=prompt.columns,
        )
        return scores, scores.by_function[:, -1] > self.config.rewards.correct_above

    async def collect(self, step: int) -> Collection:
        """Sample, score, resample: the sampler draws prompts and runs every group on its own.

        After each attempt the criterion decides: the group is ready, or the ladder gives the parameters of its next
        attempt (here temperature 2.0 with min_p 0.05), or the ladder has no further rung and the group is exhausted.
        """
        return await self.sampler.collect(step)

    def advantages(self, collection: Collection) -> tuple[TrainSample, ...]:
        """Advantages: (reward - mean) / mean, with the mean of the rewards of all attempts of the group.

        So a success after failures stands out. Of each group the half is kept whose rewards vary most, and completions
        without an advantage, which have no gradient, are left out. Each token also gets its weight in the loss, which
        is normalised over the whole batch. Solved prompts that were left out count as groups without a gradient.
        """
        groups = [*collection.ready, *(() if self.method.drop_exhausted else collection.exhausted)]
        limit = self.config.rollout.max_new_tokens
        return training_samples(groups, self.config.algorithm, limit, collection.left_out)

    def train(self, step: int, samples: Sequence[TrainSample]) -> TrainReport:
        """Train: cut the samples into micro-batches by a token budget, and make the optimizer steps on them."""
        budget = self.config.learner.micro_batch_tokens
        (batch,) = pack_batches(step, samples, ranks=1, token_budget=budget, packing=self.learner.packing)
        return self.learner.train(batch)

    async def sync(self, version: int) -> str:
        """Sync: send the adapter to the engine, in memory. The digest is that of the tensors which it read back.

        Raises SyncError if the engine does not hold the tensors that were sent.
        """
        lora, dtype = self.config.model.lora, getattr(torch, self.config.model.dtype)
        weights = pack(version, self.learner.adapter(), lora.r, lora.alpha, dtype)
        receipt = await self.rollout.apply(weights)
        return receipt.digest

    async def run(self, step: int) -> str:
        """One step; a line about it."""
        began = time.perf_counter()
        collection = await self.collect(step)
        samples = self.advantages(collection)
        report = self.train(step, samples)
        digest = await self.sync(step)

        first = [group for group in collection.attempts if len(group.attempts) == 1]
        resamples = len(collection.attempts) - len(first)
        rescued = sum(len(group.attempts) > 1 for group in collection.ready)
        accuracy = float(np.mean([group.last.correct.mean() for group in first]))
        loss = "-" if report.last is None else f"{report.last.statistics.loss:+.3f}"
        return (
            f"step {step}: accuracy {accuracy:.2f}, {resamples} resamples rescued {rescued} groups, "
            f"{len(samples)} completions trained, loss {loss}, "
            f"version {step} ({digest[:8]}), {time.perf_counter() - began:.1f} s"
        )


async def main(steps: int) -> None:
    """Load the model into both engines, then train."""
    config = settings(steps)
    model_path = resolve_model(config)  # builds the tiny model on first use
    prompts = load_prompts(config, load_tokenizer(model_path, config.model, config.data))
    longest = max(len(prompt.token_ids) for prompt in prompts.train)
    # One rank, which gathers at a free port of this machine.
    learner = LearnerEngine(model_path, config, rank=0, world_size=1, master=("127.0.0.1", 0))
    rollout = await RolloutEngine.start(model_path, longest + config.rollout.max_new_tokens, config)
    try:
        run = Step(config, prompts, rollout, learner)
        await run.sync(0)  # version 0: an adapter that does not change the base model yet
        for step in range(1, steps + 1):
            print(await run.run(step), flush=True)
    finally:
        await rollout.stop()


if __name__ == "__main__":  # vLLM starts a process of its own, which reads this file again
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
