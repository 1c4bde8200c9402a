"""A run in which no completion ends by itself gets one warning."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from adagrpo_ray.rollout.endings import Endings
from adagrpo_ray.types import Completion, GenerationRequest, SamplingParams
from tests.support.builders import make_completion

ENDED = make_completion()
CUT = replace(ENDED, finish_reason="length")


def notices(*completions: Completion) -> tuple[str, ...]:
    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        return completions

    endings = Endings(max_new_tokens=7)
    request = GenerationRequest("p", np.zeros(1, np.int32), len(completions), SamplingParams(), 7, seed=0)
    assert asyncio.run(_generated(endings, generate, request)) == completions
    returned = endings.notices()
    assert endings.notices() == ()
    return returned


async def _generated(endings: Endings, generate: object, request: GenerationRequest) -> tuple[Completion, ...]:
    return await endings.watched(generate)(request)  # type: ignore[arg-type]


def test_a_run_without_a_terminated_completion_is_warned_once() -> None:
    (warning,) = notices(CUT, CUT, CUT)
    assert warning.startswith("warning: none of 3 completions ended by itself, all were cut off at")
    assert "rollout.max_new_tokens=7" in warning
    assert "generation_config.json" in warning


def test_no_warning_if_a_completion_terminated_or_none_was_drawn() -> None:
    assert notices(CUT, ENDED, CUT) == ()
    assert notices() == ()
