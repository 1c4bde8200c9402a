"""Which groups of a step people get to read, and what of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.runs.measured import known
from adagrpo_ray.runs.samples import AttemptSample, CompletionSample, GroupSample, Outcome, well_formed
from adagrpo_ray.sampling.batch import is_masked, picked
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.types import Attempt, Completion, Group


def group_samples(
    step: int,
    collection: Collection,
    functions: Sequence[str],
    settings: AlgorithmSettings,
    count: int,
    *,
    exhausted_dropped: bool,
) -> tuple[GroupSample, ...]:
    """Up to `count` groups that `step` trained on, sampled or gave up; of these, groups with resamples go first.

    `functions` are the reward functions' names. Only groups trained on have advantages, and of them the completions
    that `settings.train_on` picks and the loss does not mask.
    """
    touched = {_visit(group) for group in collection.attempts}
    lost = [failure.group for failure in collection.failed if failure.dropped]
    found: list[tuple[Group, Outcome, bool]] = [
        *((group, "trained", True) for group in collection.ready),
        *((group, "exhausted", not exhausted_dropped) for group in collection.exhausted),
        *((group, "waiting", False) for group in collection.waiting if _visit(group) in touched),
        *((group, "dropped", False) for group in (*lost, *collection.aged) if group.attempts),
    ]
    found.sort(key=lambda each: len(each[0].attempts) == 1)
    return tuple(
        _sample(step, group, outcome, functions, _advantages(group, settings) if trained else {})
        for group, outcome, trained in found[:count]
    )


def _advantages(group: Group, settings: AlgorithmSettings) -> dict[Completion, float]:
    """The advantages of the completions in the loss."""
    return {c: advantage for c, advantage in picked(group, settings) if not is_masked(c, settings)}


def _visit(group: Group) -> tuple[str, int]:
    """What stays the same of a group from step to step."""
    return group.prompt.id, group.epoch


def _sample(
    step: int, group: Group, outcome: Outcome, functions: Sequence[str], advantages: Mapping[Completion, float]
) -> GroupSample:
    return GroupSample(
        step=step,
        prompt_id=well_formed(group.prompt.id),
        prompt=well_formed(group.prompt.text),
        difficulty=well_formed(group.prompt.difficulty),
        answer=well_formed(group.prompt.answer),
        outcome=outcome,
        attempts=tuple(
            AttemptSample(attempt.rung, attempt.sampling, _completions(attempt, functions, advantages))
            for attempt in group.attempts
        ),
    )


def _completions(
    attempt: Attempt, functions: Sequence[str], advantages: Mapping[Completion, float]
) -> tuple[CompletionSample, ...]:
    return tuple(
        CompletionSample(
            text=well_formed(completion.text),
            tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            weight_version=completion.weight_version,
            reward=float(reward),
            rewards=dict(zip(functions, map(known, scores.tolist()), strict=True)),
            correct=bool(correct),
            advantage=advantages.get(completion),
        )
        for completion, reward, scores, correct in zip(
            attempt.completions, attempt.rewards, attempt.rewards_by_function, attempt.correct, strict=True
        )
    )
