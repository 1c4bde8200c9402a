"""The groups of a step that go into samples.jsonl, for people to read."""

from __future__ import annotations

from collections.abc import Sequence

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.runs.group_codec import readable_attempts, well_formed
from adagrpo_ray.runs.samples import GroupSample, Outcome
from adagrpo_ray.sampling.batch import is_masked, picked
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.types import Completion, Group


def group_samples(
    step: int,
    collection: Collection,
    functions: Sequence[str],
    settings: AlgorithmSettings,
    count: int,
    *,
    exhausted_dropped: bool,
) -> tuple[GroupSample, ...]:
    """Up to `count` groups that `step` trained on, sampled or gave up; groups with resamples come first.

    `functions` are the names of the reward functions. Advantages are given for the completions that are trained on:
    those that `settings.selection` picks and the loss does not mask.
    """
    touched = {_identity(group) for group in collection.attempts}
    lost = [failure.group for failure in collection.failed if failure.dropped]
    found: list[tuple[Group, Outcome]] = [
        *((group, "trained") for group in collection.ready),
        *((group, "exhausted") for group in collection.exhausted),
        *((group, "waiting") for group in collection.waiting if _identity(group) in touched),
        *((group, "dropped") for group in (*lost, *collection.aged) if group.attempts),
    ]
    trained = [*collection.ready, *(() if exhausted_dropped else collection.exhausted)]
    found.sort(key=lambda each: each[0].resamples == 0)
    advantages = dict(zip(trained, _advantages(trained, settings), strict=True))
    return tuple(
        GroupSample.from_dict(
            {
                "step": step,
                "prompt_id": well_formed(group.prompt.id),
                "prompt": well_formed(group.prompt.text),
                "difficulty": well_formed(group.prompt.difficulty),
                "answer": well_formed(group.prompt.answer),
                "outcome": outcome,
                "attempts": readable_attempts(group, functions, advantages.get(group, {})),
                "size": group.size,
                "chance": group.chance,
            }
        )
        for group, outcome in found[:count]
    )


def _advantages(groups: Sequence[Group], settings: AlgorithmSettings) -> list[dict[Completion, float]]:
    """The advantages of the completions of each group that are in the loss; `groups` are all that are trained on."""
    return [
        {completion: advantage for completion, advantage in pairs if not is_masked(completion, settings)}
        for pairs in picked(groups, settings)
    ]


def _identity(group: Group) -> tuple[str, int]:
    """A key of the group that is the same in every step."""
    return group.prompt.id, group.epoch
