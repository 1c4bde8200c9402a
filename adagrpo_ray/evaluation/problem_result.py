"""Makes the result of a problem from its scored completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.data.benchmark_sets import ANSWERS
from adagrpo_ray.evaluation.results import CompletionResult, ProblemResult
from adagrpo_ray.rewards import Scores
from adagrpo_ray.rewards.benchmark_answers import extracted
from adagrpo_ray.rewards.consumption import Consumption
from adagrpo_ray.rewards.extract import exact_answer, holds_answer, marked_answer
from adagrpo_ray.types import Completion, Prompt

NOTHING: Mapping[str, Consumption] = MappingProxyType({})


def problem_result(
    format: FormatSettings,
    model: str,
    settings: str,
    prompt: Prompt,
    completions: Sequence[Completion],
    scores: Scores,
    correct: NDArray[np.bool_],
    consumption: Mapping[str, Consumption] = NOTHING,
) -> ProblemResult:
    """The result of a problem whose G completions were scored.

    model, settings: their digests.
    correct: shape [G].
    consumption: that of judges and reward models, by their names.
    """
    kind = prompt.columns.get(ANSWERS)  # None for a problem that is not of a benchmark

    def answer_of(text: str) -> tuple[str | None, bool]:
        """The answer of a completion, and whether it is in the prompted form."""
        if kind is None:
            return marked_answer(text, format), exact_answer(text, format) is not None
        found = extracted(text, str(kind), format)
        return found, found is not None

    def result(completion: Completion, reward: float, is_correct: bool) -> CompletionResult:
        answer, in_form = answer_of(completion.text)
        # A letter is in nearly every text, as the article "A".
        anywhere = kind != "letter" and holds_answer(completion.text, prompt.answer)
        return CompletionResult(
            text=completion.text,
            tokens=completion.policy_tokens,
            cut_off=completion.finish_reason == "length",
            reward=reward,
            correct=is_correct,
            correct_format=in_form,
            correct_anywhere=is_correct or anywhere,
            extracted=answer,
        )

    return ProblemResult(
        model=model,
        settings=settings,
        problem=prompt.id,
        prompt=prompt.text,
        answer=prompt.answer,
        difficulty=prompt.difficulty,
        error=scores.error or "",
        completions=tuple(
            result(completion, float(reward), bool(is_correct))
            for completion, reward, is_correct in zip(completions, scores.rewards, correct, strict=True)
        ),
        judges={name: consumed.counts for name, consumed in consumption.items()},
    )
