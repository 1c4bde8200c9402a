"""Small prompts, completions, attempts and groups for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from adagrpo_ray.algorithm.loss import Tokens, policy_loss
from adagrpo_ray.algorithm.update_statistics import UpdateStatistics
from adagrpo_ray.config.algorithm import LossSettings
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.types import Attempt, Completion, Group, Part, Prompt, SamplingParams, Turn

PLAIN = SamplingParams()
NOTHING = Collection(ready=(), exhausted=(), waiting=(), late=(), aged=(), failed=(), attempts=())


def make_prompt(id: str = "p", difficulty: str = "", length: int = 3) -> Prompt:
    return Prompt(id, id, np.arange(length, dtype=np.int32), answer="42", difficulty=difficulty)


def make_completion(length: int = 2, text: str = "", first_token: int = 0) -> Completion:
    tokens = np.arange(first_token, first_token + length, dtype=np.int32)
    return Completion(tokens, np.full(length, -0.5, np.float32), text, finish_reason="stop", weight_version=0)


def make_episode(*turns: tuple[int, int], finish_reason: str = "stop", **last: Any) -> Completion:
    """An episode of turns, each with its number of tokens of the policy and of observed tokens after them.

    `last` has fields of the last turn.
    """
    observed: list[bool] = []
    made: list[Turn] = []
    for number, (written, seen) in enumerate(turns, 1):
        first, end = len(observed), len(observed) + written
        made.append(Turn(first, end, f"text {number}", f"observation {number}" if seen else ""))
        observed += [False] * written + [True] * seen
    made[-1] = replace(made[-1], **last)
    mask = np.array(observed, np.bool_)
    return replace(
        make_completion(len(observed), text=made[-1].text),
        logprobs=np.where(mask, 0.0, -0.5).astype(np.float32),
        finish_reason=finish_reason,
        observed=mask,
        turns=tuple(made),
    )


def make_attempt(
    rewards: Sequence[float],
    *,
    rung: int = -1,
    by_function: Sequence[Sequence[float]] | None = None,
    correct: Sequence[bool] | None = None,
    lengths: Sequence[int] | None = None,
    sampling: SamplingParams = PLAIN,
    part: Part = "whole",
) -> Attempt:
    """An attempt of `rewards` [G]; by default there is one reward function, and rewards above 0 are correct."""
    return Attempt(
        rung=rung,
        sampling=sampling,
        completions=tuple(make_completion(length) for length in lengths or [2] * len(rewards)),
        rewards=np.array(rewards, np.float32),
        rewards_by_function=np.array(by_function or [[r] for r in rewards], np.float32),
        correct=np.array(correct if correct is not None else [r > 0 for r in rewards], np.bool_),
        part=part,
    )


def make_group(*attempts: Sequence[float] | Attempt, prompt: Prompt | None = None, epoch: int = 0) -> Group:
    """A group after `attempts`, each given as its rewards or as an Attempt; its size is that of the last one, or 2."""
    group = Group(prompt or make_prompt(), epoch, born=1, size=2)
    for number, attempt in enumerate(attempts):
        done = attempt if isinstance(attempt, Attempt) else make_attempt(attempt, rung=number - 1)
        group = group.with_attempt(done)
    return replace(group, size=sum(len(a.completions) for a in group.final)) if attempts else group


def flat(statistics: UpdateStatistics) -> list[float]:
    """All numbers of `statistics` except those by difficulty, for a comparison with a tolerance."""
    values = asdict(statistics)
    values.pop("entropy_by_difficulty")
    return [v for value in values.values() for v in (value.values() if isinstance(value, dict) else [value])]


def statistics_of(ratios: list[float], difficulties: list[str], weights: list[float] | None = None) -> UpdateStatistics:
    """Statistics of one token per completion, with ratios policy / old = old / behaviour and entropies 1, 2, 3 ..."""
    log = torch.tensor(ratios).log()
    policy = torch.full_like(log, -1.0)
    tokens = Tokens(
        policy=policy,
        old=policy - log,
        behaviour=policy - 2 * log,
        reference=policy,
        advantages=torch.ones_like(log),
        weights=torch.tensor(weights) if weights else torch.full_like(log, 0.1),
        sequence=torch.arange(len(log)),
        entropy=torch.arange(1.0, len(log) + 1),
        difficulties=difficulties,
    )
    return policy_loss(tokens, LossSettings())[1]
