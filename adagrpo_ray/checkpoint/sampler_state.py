"""The sampler's state as JSON and named arrays, and back. A prompt is kept by its id.

Arrays of a waiting group are named by its number, its attempt's and its completion's: "0.1.rewards",
"0.1.3.token_ids". "0.prompt" are the tokens that its attempts were sampled after: a chat template that prints the date
renders the same prompt differently on another day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.allocation import Posterior
from adagrpo_ray.data.order import check_ids
from adagrpo_ray.errors import CheckpointError
from adagrpo_ray.types import Attempt, Completion, Group, Prompt, SamplingParams

Arrays = dict[str, NDArray[Any]]

OF_ATTEMPT = ("rewards", "rewards_by_function", "correct")
OF_COMPLETION = ("token_ids", "logprobs")


def to_plain(state: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """What `AdaptiveSampler.state_dict` gave, as JSON values and arrays."""
    arrays: Arrays = {}
    plain = {
        "prompts": state["prompts"],
        "waiting": [_plain_group(group, str(number), arrays) for number, group in enumerate(state["waiting"])],
        "posteriors": {prompt: asdict(posterior) for prompt, posterior in state["posteriors"].items()},
        "difficulties": {difficulty: asdict(posterior) for difficulty, posterior in state["difficulties"].items()},
    }
    return plain, arrays


def from_plain(plain: Mapping[str, Any], arrays: Arrays, prompts: Mapping[str, Prompt]) -> dict[str, Any]:
    """What `to_plain` was given, for `AdaptiveSampler.load_state_dict`; `prompts` are the data set's, by id.

    Raises CheckpointError if the data set has no such prompt any more, or the ids are of another version.
    """
    check_ids(plain["prompts"])
    return {
        "prompts": plain["prompts"],
        "waiting": [_group(group, str(number), arrays, prompts) for number, group in enumerate(plain["waiting"])],
        "posteriors": {prompt: Posterior(**values) for prompt, values in plain["posteriors"].items()},
        "difficulties": {difficulty: Posterior(**values) for difficulty, values in plain["difficulties"].items()},
    }


def _plain_group(group: Group, place: str, arrays: Arrays) -> dict[str, Any]:
    if group.attempts:
        arrays[f"{place}.prompt"] = np.ascontiguousarray(group.prompt.token_ids)
    return {
        "prompt": group.prompt.id,
        "epoch": group.epoch,
        "born": group.born,
        "size": group.size,
        "start": group.start,
        "late": group.late,
        "attempts": [_plain_attempt(a, f"{place}.{number}", arrays) for number, a in enumerate(group.attempts)],
    }


def _plain_attempt(attempt: Attempt, place: str, arrays: Arrays) -> dict[str, Any]:
    _keep(attempt, OF_ATTEMPT, place, arrays)
    for number, completion in enumerate(attempt.completions):
        _keep(completion, OF_COMPLETION, f"{place}.{number}", arrays)
    return {
        "rung": attempt.rung,
        "sampling": asdict(attempt.sampling),
        "completions": [
            {"text": c.text, "finish_reason": c.finish_reason, "weight_version": c.weight_version}
            for c in attempt.completions
        ],
    }


def _keep(owner: Attempt | Completion, names: tuple[str, ...], place: str, arrays: Arrays) -> None:
    # Contiguous, because safetensors copies an array's memory as it lies.
    arrays.update({f"{place}.{name}": np.ascontiguousarray(getattr(owner, name)) for name in names})


def _group(plain: Mapping[str, Any], place: str, arrays: Arrays, prompts: Mapping[str, Prompt]) -> Group:
    if plain["prompt"] not in prompts:
        raise CheckpointError(
            f"a group waits for the prompt {plain['prompt']}, which data.source does not hold any more; "
            "bring back the data that the run began with"
        )
    attempts = tuple(_attempt(a, f"{place}.{number}", arrays) for number, a in enumerate(plain["attempts"]))
    prompt = prompts[plain["prompt"]]
    if attempts and not np.array_equal(prompt.token_ids, arrays[f"{place}.prompt"]):
        prompt = replace(prompt, token_ids=arrays[f"{place}.prompt"])
    return Group(
        prompt=prompt,
        epoch=plain["epoch"],
        born=plain["born"],
        size=plain["size"],
        start=plain["start"],
        late=plain["late"],
        attempts=attempts,
    )


def _attempt(plain: Mapping[str, Any], place: str, arrays: Arrays) -> Attempt:
    sampling, answer = plain["sampling"], plain["sampling"]["answer"]
    return Attempt(
        rung=plain["rung"],
        sampling=SamplingParams(**{**sampling, "answer": None if answer is None else SamplingParams(**answer)}),
        completions=tuple(
            Completion(**values, **_kept(OF_COMPLETION, f"{place}.{number}", arrays))
            for number, values in enumerate(plain["completions"])
        ),
        **_kept(OF_ATTEMPT, place, arrays),
    )


def _kept(names: tuple[str, ...], place: str, arrays: Arrays) -> dict[str, Any]:
    return {name: arrays[f"{place}.{name}"] for name in names}
