"""Results on a set of prompts, with the same `generate` and `score` as the sampler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.ladder import request_seed
from adagrpo_ray.config.run_settings import EvaluationSettings
from adagrpo_ray.errors import DivergedError, RequestLostError
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.rewards.together import together
from adagrpo_ray.sampling.group_run import Generate, Score
from adagrpo_ray.types import Completion, GenerationRequest, Prompt


@dataclass(frozen=True)
class Results:
    """The results on a set of prompts; shares and lengths are means over the prompts.

    accuracy: share of correct completions (avg@k for k completions of each prompt).
    pass_at_k: share of prompts with a correct completion.
    samples: the number of all completions.
    failed: the number of prompts that could not be generated or scored.
    mean_length: of completions, in tokens.
    clipped_ratio: share of completions that the token limit cut off.
    """

    accuracy: float
    accuracy_by_difficulty: Mapping[str, float]
    pass_at_k: float
    samples: int
    failed: int
    mean_length: float
    clipped_ratio: float


def evaluation_request(
    prompt: Prompt, settings: EvaluationSettings, max_new_tokens: int, seed: int
) -> GenerationRequest:
    """The request for a prompt, which is the same in every evaluation."""
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
    max_new_tokens: int,
    seed: int,
) -> Results:
    """Evaluate `settings.samples` completions of each prompt.

    Every evaluation uses the same seeds, so that two evaluations of a run can be compared. Completions that could not
    be generated or scored count as wrong. Raises DivergedError if a log-probability is not finite: the accuracy of such
    a model has no meaning. An error, or cancelling the caller, cancels all requests.
    """

    async def of_prompt(prompt: Prompt) -> tuple[str, float, float, float, bool]:
        request = evaluation_request(prompt, settings, max_new_tokens, seed)
        completions, scores, correct = await generate_and_score(prompt, request, generate, score)
        length = float(np.mean([c.policy_tokens for c in completions]))
        clipped = float(np.mean([c.finish_reason == "length" for c in completions]))
        return prompt.difficulty, float(correct.mean()), length, clipped, scores.error is not None

    found = await together([of_prompt(prompt) for prompt in prompts])
    difficulties, accuracies, lengths, clipped, failed = zip(*found, strict=True)
    by_difficulty: dict[str, list[float]] = defaultdict(list)
    for difficulty, accuracy in zip(difficulties, accuracies, strict=True):
        by_difficulty[difficulty].append(accuracy)
    return Results(
        accuracy=float(np.mean(accuracies)),
        accuracy_by_difficulty={name: float(np.mean(by_difficulty[name])) for name in sorted(by_difficulty)},
        pass_at_k=float(np.mean([accuracy > 0 for accuracy in accuracies])),
        samples=len(found) * settings.samples,
        failed=sum(failed),
        mean_length=float(np.mean(lengths)),
        clipped_ratio=float(np.mean(clipped)),
    )


def _check_finite(completions: Sequence[Completion]) -> None:
    """Raise DivergedError if a log-probability of a sampled token is not finite."""
    if not all(np.isfinite(completion.logprobs).all() for completion in completions):
        raise DivergedError(
            "log-probabilities of the model's completions are not finite, so its weights or logits are not finite; "
            "evaluate an earlier checkpoint, or another model"
        )
