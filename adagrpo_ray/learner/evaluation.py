"""Accuracy on held-out prompts, over the same `generate` and `score` that the sampler uses."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from adagrpo_ray.algorithm.ladder import request_seed
from adagrpo_ray.config.tree import EvaluationSettings
from adagrpo_ray.learner.sampler import Generate, Score
from adagrpo_ray.observe.records import EvaluationRecord
from adagrpo_ray.types import GenerationRequest, Prompt


def evaluation_request(
    prompt: Prompt, settings: EvaluationSettings, max_new_tokens: int, seed: int
) -> GenerationRequest:
    """What is asked for to measure on a prompt: the same every time."""
    return GenerationRequest(
        prompt_id=prompt.id,
        prompt_token_ids=prompt.token_ids,
        n=settings.samples,
        sampling=settings.sampling.params(),
        max_new_tokens=max_new_tokens,
        seed=request_seed(seed, prompt.id, -1, 0),
    )


async def evaluate(
    prompts: Sequence[Prompt],
    settings: EvaluationSettings,
    generate: Generate,
    score: Score,
    *,
    step: int,
    max_new_tokens: int,
    seed: int,
) -> EvaluationRecord:
    """Share of right completions (avg@k for k = `settings.samples`), all prompts and by level.

    The seeds are the same every time, so that two measurements of a run compare. Completions that could not be scored
    count as wrong.
    """
    began = time.perf_counter()

    async def measure(prompt: Prompt) -> tuple[str, float, float, bool]:
        completions = await generate(evaluation_request(prompt, settings, max_new_tokens, seed))
        scores, correct = await score(prompt, completions)
        length = float(np.mean([len(c.token_ids) for c in completions]))
        return prompt.level, float(correct.mean()), length, scores.error is not None

    results = await asyncio.gather(*(measure(prompt) for prompt in prompts))
    levels: dict[str, list[float]] = defaultdict(list)
    for level, accuracy, *_ in results:
        levels[level].append(accuracy)
    return EvaluationRecord(
        step=step,
        accuracy=float(np.mean([accuracy for _, accuracy, *_ in results])),
        accuracy_by_level={level: float(np.mean(levels[level])) for level in sorted(levels)},
        samples=len(results) * settings.samples,
        failed=sum(failed for *_, failed in results),
        mean_length=float(np.mean([length for _, _, length, _ in results])),
        seconds=time.perf_counter() - began,
    )
