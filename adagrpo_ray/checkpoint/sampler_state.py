"""Conversion of the sampler's state to JSON and named arrays, and back. `runs.group_codec` converts groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from adagrpo_ray.algorithm.posterior import ClassResults, PromptResults
from adagrpo_ray.algorithm.rungs import RungResults
from adagrpo_ray.data.order import check_ids
from adagrpo_ray.errors import CheckpointError
from adagrpo_ray.runs.group_codec import Arrays, arrays_of, group_of, plain_group
from adagrpo_ray.types import Group, Prompt


def to_plain(state: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """Return a result of `AdaptiveSampler.state_dict` as JSON values and arrays."""
    arrays: Arrays = {}
    for number, group in enumerate(state["waiting"]):
        arrays |= arrays_of(group, str(number))
    return {
        "prompts": state["prompts"],
        "waiting": [plain_group(group) for group in state["waiting"]],
        "planned": [plain_group(group) for group in state["planned"]],
        "results": {prompt: asdict(results) for prompt, results in state["results"].items()},
        "classes": {difficulty: asdict(results) for difficulty, results in state["classes"].items()},
        "rungs": {
            difficulty: {str(rung): asdict(results) for rung, results in by_rung.items()}
            for difficulty, by_rung in state["rungs"].items()
        },
    }, arrays


def from_plain(plain: Mapping[str, Any], arrays: Arrays, prompts: Mapping[str, Prompt]) -> dict[str, Any]:
    """Return the state that `to_plain` converted, for `AdaptiveSampler.load_state_dict`.

    `prompts` has the prompts of the data set by id. Raises CheckpointError if one of the state is not among them, or
    if the ids are of another version.
    """
    check_ids(plain["prompts"])
    # Earlier versions called the results posteriors. Theirs of classes are of another kind: classes begin without any.
    results = plain["results"] if "results" in plain else plain["posteriors"]
    return {
        "prompts": plain["prompts"],
        "waiting": [_group(group, arrays, str(number), prompts) for number, group in enumerate(plain["waiting"])],
        # They have no attempts, and so no arrays. Earlier versions planned no groups.
        "planned": [_group(group, {}, "", prompts) for group in plain.get("planned", ())],
        "results": {prompt: PromptResults(**values) for prompt, values in results.items()},
        "classes": {difficulty: ClassResults(**values) for difficulty, values in plain.get("classes", {}).items()},
        # Earlier versions have none: each rung is tried again.
        "rungs": {
            difficulty: {int(rung): RungResults(**values) for rung, values in by_rung.items()}
            for difficulty, by_rung in plain.get("rungs", {}).items()
        },
    }


def _group(plain: Mapping[str, Any], arrays: Arrays, place: str, prompts: Mapping[str, Prompt]) -> Group:
    if plain["prompt"] not in prompts:
        raise CheckpointError(
            f"the state has a group of the prompt {plain['prompt']}, which data.source does not have any more; "
            "restore the data that the run began with"
        )
    return group_of(plain, arrays, place, prompts[plain["prompt"]])
