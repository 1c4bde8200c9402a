"""Converts samples to the rows of a table, one for each completion."""

from __future__ import annotations

import json
from collections.abc import Sequence

from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.turn_text import whole_text

COLUMNS = (
    *("step", "prompt_id", "difficulty", "prompt", "answer", "outcome", "attempt", "rung", "part", "sampling"),
    *("completion", "tokens", "finish_reason", "weight_version", "reward", "rewards", "correct", "advantage"),
)

Cell = str | int | float | bool | None


def rows(groups: Sequence[GroupSample]) -> list[list[Cell]]:
    """The rows of `groups`, in the order of COLUMNS; None for a value that was not measured.

    Attempts are counted from 0; a pilot and its commit have the same number.
    """
    return [
        [
            *(group.step, group.prompt_id, group.difficulty, group.prompt, group.answer, group.outcome),
            *(group.count(number + 1) - 1, attempt.rung, attempt.part, json.dumps(attempt.sampling.model_dump())),
            *(whole_text(completion), completion.tokens, completion.finish_reason, completion.weight_version),
            *(completion.reward, json.dumps(dict(completion.rewards)), completion.correct, completion.advantage),
        ]
        for group in groups
        for number, attempt in enumerate(group.attempts)
        for completion in attempt.completions
    ]
