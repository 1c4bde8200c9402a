"""Converts groups to plain data and back: complete with arrays for checkpoints, readable for samples.jsonl.

An array's name consists of the place of the group, the number of the attempt and the number of the completion:
"0.1.rewards", "0.1.3.token_ids". "0.1.3.observed" has the places at which the mask of observed tokens changes, and is
absent if the completion has no mask. "0.prompt" holds the prompt tokens that the attempts were sampled with: a chat
template that prints the date renders the same prompt differently on another day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.runs.measured import known
from adagrpo_ray.types import Attempt, Completion, Group, Mask, Prompt, SamplingParams, Turn

Arrays = dict[str, NDArray[Any]]

OF_ATTEMPT = ("rewards", "rewards_by_function", "correct")
OF_COMPLETION = ("token_ids", "logprobs")


def plain_group(group: Group) -> dict[str, Any]:
    """The group in JSON types, without its arrays. The prompt is stored by its id."""
    return {
        "prompt": group.prompt.id,
        "epoch": group.epoch,
        "born": group.born,
        "size": group.size,
        "start": group.start,
        "late": group.late,
        "chance": group.chance,
        "attempts": [
            {
                "rung": attempt.rung,
                "part": attempt.part,
                "sampling": attempt.sampling.model_dump(),
                "completions": [_plain_completion(completion) for completion in attempt.completions],
            }
            for attempt in group.attempts
        ],
    }


def arrays_of(group: Group, place: str) -> Arrays:
    """The arrays that `plain_group` leaves out, by name; `place` is the place of the group."""
    arrays: Arrays = {f"{place}.prompt": group.prompt.token_ids} if group.attempts else {}
    for a, attempt in enumerate(group.attempts):
        arrays |= {f"{place}.{a}.{name}": getattr(attempt, name) for name in OF_ATTEMPT}
        for c, completion in enumerate(attempt.completions):
            arrays |= {f"{place}.{a}.{c}.{name}": getattr(completion, name) for name in OF_COMPLETION}
            if completion.observed is not None:
                arrays[f"{place}.{a}.{c}.observed"] = _changes(completion.observed)
    # safetensors ignores strides, so arrays have to be contiguous.
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def group_of(plain: Mapping[str, Any], arrays: Arrays, place: str, prompt: Prompt) -> Group:
    """The group that `plain_group` and `arrays_of` converted; `prompt` is the prompt of its id, as rendered now."""

    def stored(names: Sequence[str], at: str) -> dict[str, Any]:
        return {name: arrays[f"{at}.{name}"] for name in names}

    def completion(values: Mapping[str, Any], at: str) -> Completion:
        turns = tuple(Turn(**turn) for turn in values.get("turns", ()))
        own = stored(OF_COMPLETION, at)
        observed = _mask(arrays[f"{at}.observed"], len(own["token_ids"])) if f"{at}.observed" in arrays else None
        return Completion(**{**values, **own, "turns": turns}, observed=observed)

    def attempt(values: Mapping[str, Any], at: str) -> Attempt:
        return Attempt(
            rung=values["rung"],
            sampling=sampling_of(values["sampling"]),
            completions=tuple(completion(each, f"{at}.{c}") for c, each in enumerate(values["completions"])),
            part=values.get("part", "whole"),  # earlier versions wrote none
            **stored(OF_ATTEMPT, at),
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
        chance=plain.get("chance"),  # earlier versions did not write it
    )


def sampling_of(plain: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters of an attempt. Raises ValueError if one is unknown or out of bounds."""
    answer = plain["answer"]
    if answer is not None:  # earlier versions wrote `answer: null` inside the answer
        answer = PhaseParams(**{name: value for name, value in answer.items() if name != "answer"})
    return SamplingParams(**{**plain, "answer": answer})


def readable_attempts(
    group: Group, functions: Sequence[str], advantages: Mapping[Completion, float]
) -> list[dict[str, Any]]:
    """The attempts of `plain_group` for people to read: with the numbers of tokens and the scores of each completion.

    `functions` are the names of the reward functions. A score is None if the function does not apply. An advantage is
    None if `advantages` has none for the completion.
    """
    return [
        {
            **plain,
            "completions": [
                {
                    **values,
                    "text": well_formed(completion.text),
                    "tokens": completion.policy_tokens,
                    "reward": float(reward),
                    "rewards": dict(zip(functions, map(known, scores.tolist()), strict=True)),
                    "correct": bool(correct),
                    "advantage": advantages.get(completion),
                    "observed_tokens": len(completion.token_ids) - completion.policy_tokens,
                    "turns": [_readable_turn(turn) for turn in completion.turns],
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


def _plain_completion(completion: Completion) -> dict[str, Any]:
    """A completion without its arrays; it has turns only if it is an episode."""
    plain: dict[str, Any] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "weight_version": completion.weight_version,
    }
    return {**plain, "turns": [asdict(turn) for turn in completion.turns]} if completion.turns else plain


def _readable_turn(turn: Turn) -> dict[str, Any]:
    return {name: well_formed(value) if isinstance(value, str) else value for name, value in asdict(turn).items()}


def _changes(observed: Mask) -> NDArray[np.int32]:
    """The places at which a mask [T] changes, with False before its beginning: few numbers instead of T bytes."""
    return np.flatnonzero(np.diff(observed, prepend=False)).astype(np.int32)


def _mask(changes: NDArray[np.int32], length: int) -> Mask:
    """The mask of `length` tokens that changes at these places."""
    changing = np.zeros(length, np.bool_)
    changing[changes] = True
    return np.logical_xor.accumulate(changing)


def well_formed(text: str) -> str:
    """`text` with U+FFFD in place of unpaired surrogates, which cannot be encoded as UTF-8."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
