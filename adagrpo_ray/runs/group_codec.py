"""A group as plain data: whole for checkpoints, with its numbers as named arrays, and readable for samples.jsonl.

Arrays are named by the group's place, its attempt's number and its completion's: "0.1.rewards", "0.1.3.token_ids".
"0.prompt" are the tokens that its attempts were sampled after: a chat template that prints the date renders the same
prompt differently on another day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.runs.measured import known
from adagrpo_ray.types import Attempt, Completion, Group, Prompt, SamplingParams

Arrays = dict[str, NDArray[Any]]

OF_ATTEMPT = ("rewards", "rewards_by_function", "correct")
OF_COMPLETION = ("token_ids", "logprobs")


def plain_group(group: Group) -> dict[str, Any]:
    """The group in JSON's own types, without its arrays; its prompt is kept by its id."""
    return {
        "prompt": group.prompt.id,
        "epoch": group.epoch,
        "born": group.born,
        "size": group.size,
        "start": group.start,
        "late": group.late,
        "attempts": [
            {
                "rung": attempt.rung,
                "sampling": attempt.sampling.model_dump(),
                "completions": [
                    {"text": c.text, "finish_reason": c.finish_reason, "weight_version": c.weight_version}
                    for c in attempt.completions
                ],
            }
            for attempt in group.attempts
        ],
    }


def arrays_of(group: Group, place: str) -> Arrays:
    """The arrays that `plain_group` leaves out, by their names; `place` is the group's own."""
    arrays: Arrays = {f"{place}.prompt": group.prompt.token_ids} if group.attempts else {}
    for a, attempt in enumerate(group.attempts):
        arrays |= {f"{place}.{a}.{name}": getattr(attempt, name) for name in OF_ATTEMPT}
        for c, completion in enumerate(attempt.completions):
            arrays |= {f"{place}.{a}.{c}.{name}": getattr(completion, name) for name in OF_COMPLETION}
    # Contiguous, because safetensors copies an array's memory as it lies.
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def group_of(plain: Mapping[str, Any], arrays: Arrays, place: str, prompt: Prompt) -> Group:
    """The group whose `plain_group` and `arrays_of` these are; `prompt` is that of its id, as rendered today."""

    def kept(names: Sequence[str], at: str) -> dict[str, Any]:
        return {name: arrays[f"{at}.{name}"] for name in names}

    def completion(values: Mapping[str, Any], at: str) -> Completion:
        return Completion(**values, **kept(OF_COMPLETION, at))

    def attempt(values: Mapping[str, Any], at: str) -> Attempt:
        return Attempt(
            rung=values["rung"],
            sampling=sampling_of(values["sampling"]),
            completions=tuple(completion(each, f"{at}.{c}") for c, each in enumerate(values["completions"])),
            **kept(OF_ATTEMPT, at),
        )

    if plain["attempts"] and not np.array_equal(prompt.token_ids, arrays[f"{place}.prompt"]):
        prompt = replace(prompt, token_ids=arrays[f"{place}.prompt"])
    return Group(
        prompt=prompt,
        epoch=plain["epoch"],
        born=plain["born"],
        size=plain["size"],
        start=plain["start"],
        late=plain["late"],
        attempts=tuple(attempt(values, f"{place}.{a}") for a, values in enumerate(plain["attempts"])),
    )


def sampling_of(plain: Mapping[str, Any]) -> SamplingParams:
    """An attempt's sampling parameters; ValueError if one is not known or out of its bounds."""
    answer = plain["answer"]
    if answer is not None:  # earlier versions wrote an `answer` of null into the answer
        answer = PhaseParams(**{name: value for name, value in answer.items() if name != "answer"})
    return SamplingParams(**{**plain, "answer": answer})


def readable_attempts(
    group: Group, functions: Sequence[str], advantages: Mapping[Completion, float]
) -> list[dict[str, Any]]:
    """The attempts of `plain_group`, for people: tokens are counted, and each text has its scores.

    `functions` are the reward functions' names; a score is None if the function does not apply, and so is the
    advantage of a completion that has none in `advantages`.
    """
    return [
        {
            **plain,
            "completions": [
                {
                    **values,
                    "text": well_formed(completion.text),
                    "tokens": len(completion.token_ids),
                    "reward": float(reward),
                    "rewards": dict(zip(functions, map(known, scores.tolist()), strict=True)),
                    "correct": bool(correct),
                    "advantage": advantages.get(completion),
                }
                for values, completion, reward, scores, correct in zip(
                    plain["completions"],
                    attempt.completions,
                    attempt.rewards,
                    attempt.rewards_by_function,
                    attempt.correct,
                    strict=True,
                )
            ],
        }
        for plain, attempt in zip(plain_group(group)["attempts"], group.attempts, strict=True)
    ]


def well_formed(text: str) -> str:
    """`text` with U+FFFD for surrogates without their other half, which no file or terminal would take."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
