"""With the settings of the original, recorded rewards give the advantages of the original."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.config import Config
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.sampling.batch import training_samples
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.builders import make_completion, make_prompt
from tests.support.loops import run

CONFIG = Config.load("launch/configs/local-1gpu.yaml")
FUNCTIONS = [f.function for f in CONFIG.rewards.functions]
ANSWER = FUNCTIONS.index("answer")
# format_exact, format_approximate, number, answer of four completions, attempt after attempt, as REFERENCE.md scores.
WRONG = [[0, -3, -2.5, -2], [3, 1.5, -1.5, -2.5], [0, 0, -2.5, -2], [3, 1.5, 0, -4.5]]
WORSE = [[0, -1.5, -2.5, -2], [0, -3, -2.5, -2], [0, -3, -2.5, -2], [3, 1.5, -1, -2.5]]
RIGHT = [[3, 1.5, 4, 5], [3, 1.5, -1.5, -2.5], [0, 0, -2.5, -2], [3, 1.5, -1.5, 1.5]]


def advantages_of_the_original(attempts: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Advantages of the last attempt only, from mean and sample std of all cached rewards and its own."""
    totals = [[sum(scores) for scores in attempt] for attempt in attempts]
    cached = np.array(totals).ravel()
    return [(r - cached.mean()) / (cached.std(ddof=1) + 1e-4) for r in totals[-1]]


@pytest.mark.parametrize(
    ("step", "recorded", "attempts"),
    [
        (1, [RIGHT], 1),
        (1, [WRONG, RIGHT], 2),
        (1, [WRONG, WORSE, RIGHT], 3),  # both retries of the first trigger
        (1, [WRONG, WORSE, WRONG, RIGHT], 3),  # used up: trained on all the same
        (99, [WRONG, WORSE, WRONG, RIGHT], 3),
        (100, [WRONG, WORSE, WRONG, RIGHT], 4),  # four retries from step 100 on
        (300, [WRONG] * 8 + [RIGHT], 9),
        (700, [WORSE] * 20, 17),
    ],
)
def test_recorded_rewards_give_the_advantages_of_the_original(
    step: int, recorded: list[list[list[float]]], attempts: int
) -> None:
    seen: list[GenerationRequest] = []

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        seen.append(request)
        return tuple(make_completion(length=2 + i) for i in range(request.n))

    async def score(prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        raw = np.array(recorded[len(seen) - 1], np.float32)
        return Scores(raw.sum(axis=1), raw), raw[:, ANSWER] > CONFIG.rewards.correct_above

    sampler = AdaptiveSampler(
        CONFIG.algorithm,
        make_method(CONFIG.algorithm, FUNCTIONS),
        PromptOrder([make_prompt()], seed=0, shuffle=False),
        generate,
        score,
        max_new_tokens=16,
        seed=0,
    )
    collection = run(sampler.collect(step))
    samples = training_samples([*collection.ready, *collection.exhausted], CONFIG.algorithm, 16)
    assert len(seen) == attempts
    expected = advantages_of_the_original(recorded[:attempts])
    assert [s.advantage for s in samples] == pytest.approx(expected, abs=1e-6)
