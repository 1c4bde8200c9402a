"""Accuracy on held-out prompts, with the same `generate` and `score` as the sampler."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.ladder import request_seed
from adagrpo_ray.config.run_settings import EvaluationSettings
from adagrpo_ray.errors import DivergedError, RequestLostError
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.runs.records import EvaluationRecord
from adagrpo_ray.sampling.group_run import Generate, Score
from adagrpo_ray.types import Completion, GenerationRequest, Prompt


def evaluation_request(
    prompt: Prompt, settings: EvaluationSettings, max_new_tokens: int, seed: int
) -> GenerationRequest:
    """The request for a held-out prompt, which is the same in every evaluation."""
    return GenerationRequest(
        prompt_id=prompt.id,
        prompt_token_ids=prompt.token_ids,
        n=settings.samples,
        sampling=settings.sampling,
        max_new_tokens=max_new_tokens,
        seed=request_seed(seed, prompt.id, -1, 0),
    )


async def generate_and_score(
    prompt: Prompt, request: GenerationRequest, generate: Generate, score: Score
) -> tuple[tuple[Completion, ...], Scores, NDArray[np.bool_]]:
    """Generate and score the completions [G] of a prompt; returns them, their scores, and which of them are correct.

    If the prompt is given up (RequestLostError), its completions are empty and wrong, and the scores, which are 0, have
    the error. Raises DivergedError if a log-probability is not finite, and the other errors of `generate` and `score`.
    """
    try:
        completions = await generate(request)
    except RequestLostError as error:
        nothing = Completion(np.empty(0, np.int32), np.empty(0, np.float32), "", "lost", weight_version=-1)
        zeros = np.zeros(request.n, np.float32)
        return (nothing,) * request.n, Scores(zeros, np.empty((request.n, 0), np.float32), str(error)), zeros > 0
    _check_finite(completions)
    scores, correct = await score(prompt, completions)
    return completions, scores, correct


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
    """Evaluate the share of correct completions (avg@k for k = `settings.samples`), overall and by difficulty.

    Every evaluation uses the same seeds, so that two evaluations of a run can be compared. Completions that could not
    be generated or scored count as wrong. Raises DivergedError if a log-probability is not finite: the accuracy of such
    a model has no meaning.
    """
    began = time.perf_counter()

    async def of_prompt(prompt: Prompt) -> tuple[str, float, float, bool]:
        request = evaluation_request(prompt, settings, max_new_tokens, seed)
        completions, scores, correct = await generate_and_score(prompt, request, generate, score)
        length = float(np.mean([c.policy_tokens for c in completions]))
        return prompt.difficulty, float(correct.mean()), length, scores.error is not None

    results = await asyncio.gather(*(of_prompt(prompt) for prompt in prompts))
    difficulties: dict[str, list[float]] = defaultdict(list)
    for difficulty, accuracy, *_ in results:
        difficulties[difficulty].append(accuracy)
    return EvaluationRecord(
        step=step,
        accuracy=float(np.mean([accuracy for _, accuracy, *_ in results])),
        accuracy_by_difficulty={
            difficulty: float(np.mean(difficulties[difficulty])) for difficulty in sorted(difficulties)
        },
        samples=len(results) * settings.samples,
        failed=sum(failed for *_, failed in results),
        completions_mean_length=float(np.mean([length for _, _, length, _ in results])),
        runtime=time.perf_counter() - began,
    )


def _check_finite(completions: Sequence[Completion]) -> None:
    """Raise DivergedError if a log-probability of a sampled token is not finite."""
    if not all(np.isfinite(completion.logprobs).all() for completion in completions):
        raise DivergedError(
            "log-probabilities of the model's completions are not finite, so its weights or logits are not finite; "
            "evaluate an earlier checkpoint, or another model"
        )
