"""Accuracy on held-out prompts if some of them cannot be generated or scored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.run_settings import EvaluationSettings
from adagrpo_ray.errors import RequestLostError, RewardError
from adagrpo_ray.rewards import Scores
from adagrpo_ray.runs.records import EvaluationRecord
from adagrpo_ray.sampling.evaluate import evaluate, evaluation_request, generate_and_score
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.builders import make_completion, make_prompt


def evaluated(*, stop: bool = False, given_up: bool = False) -> EvaluationRecord:
    """Evaluate an easy prompt, a hard one, and a hard one that cannot be scored or, if `given_up`, generated."""

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        if given_up and request.prompt_id == "bad":
            raise RequestLostError("prompt bad is given up")
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


def test_a_prompt_that_is_given_up_counts_as_wrong_and_as_failed() -> None:
    record = evaluated(given_up=True)
    assert record.accuracy_by_difficulty == {"easy": 1.0, "hard": 0.5}
    assert (record.samples, record.failed) == (6, 1)
    assert record.completions_mean_length == pytest.approx(8 / 3), "its completions are empty"


def test_completions_of_a_prompt_that_is_given_up_are_empty_and_wrong() -> None:
    """`launch/evaluate.py` stores them as it stores others."""
    from adagrpo_ray.evaluation.execution import judge  # with Ray and torch, which no other test of this file needs

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        raise RequestLostError("prompt p is given up")

    async def score(prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        pytest.fail("there is nothing to score")

    prompt, settings = make_prompt("p", "easy"), EvaluationSettings(samples=3)
    request = evaluation_request(prompt, settings, 8, seed=0)
    completions, scores, correct = asyncio.run(generate_and_score(prompt, request, generate, score))
    result = judge(FormatSettings(), "model", "settings", prompt, completions, scores, correct)
    assert result.error == "prompt p is given up"
    assert len(result.completions) == 3
    for completion in result.completions:
        assert (completion.text, completion.tokens, completion.cut_off, completion.reward) == ("", 0, False, 0.0)
        assert (completion.correct, completion.correct_format, completion.correct_anywhere) == (False,) * 3
