"""Accuracy on held-out prompts if some of them cannot be scored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from adagrpo_ray.config.run_settings import EvaluationSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards import Scores
from adagrpo_ray.runs.records import EvaluationRecord
from adagrpo_ray.sampling.evaluate import evaluate
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.builders import make_completion, make_prompt


def evaluated(*, stop: bool = False) -> EvaluationRecord:
    """Evaluate an easy prompt, and one of another difficulty whose completions cannot be scored."""

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        return (make_completion(4),) * request.n

    async def score(prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        bad = prompt.id == "bad"
        if bad and stop:
            raise RewardError("no score")
        rewards = np.full(len(group), 0.0 if bad else 1.0, np.float32)
        return Scores(rewards, rewards[:, None], "no score" if bad else None), rewards > 0

    prompts = [make_prompt("good", "easy"), make_prompt("bad", "hard"), make_prompt("fine", "hard")]
    settings = EvaluationSettings(samples=2)
    return asyncio.run(evaluate(prompts, settings, generate, score, step=3, max_new_tokens=8, seed=0))


def test_completions_that_cannot_be_scored_count_as_wrong_and_as_failed() -> None:
    record = evaluated()
    assert record.accuracy == pytest.approx(2 / 3)
    assert record.accuracy_by_difficulty == {"easy": 1.0, "hard": 0.5}
    assert (record.samples, record.failed, record.completions_mean_length) == (6, 1, 4.0)


def test_evaluation_raises_errors_that_stop_the_run() -> None:
    with pytest.raises(RewardError, match="no score"):
        evaluated(stop=True)
