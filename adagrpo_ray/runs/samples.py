"""Groups of a step for people to read: problem, attempts, completions, rewards, advantages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from adagrpo_ray.runs.group_codec import sampling_of
from adagrpo_ray.runs.record import Record
from adagrpo_ray.types import SamplingParams

Outcome = Literal["trained", "exhausted", "waiting", "dropped"]


@dataclass(frozen=True)
class CompletionSample(Record):
    """One completion; `tokens` is its length, `rewards` are by reward function, None if one does not apply.

    `advantage` is the one that it was trained with, None if it was not trained on.
    """

    text: str
    tokens: int
    finish_reason: str
    weight_version: int
    reward: float
    rewards: Mapping[str, float | None]
    correct: bool
    advantage: float | None


@dataclass(frozen=True)
class AttemptSample(Record):
    """One sampling of a group: `rung` is -1 for the base parameters, else the place in the ladder, from 0."""

    rung: int
    sampling: SamplingParams
    completions: tuple[CompletionSample, ...]

    @property
    def best_reward(self) -> float | None:
        """The highest reward of the attempt; None if it has no completions."""
        return max((c.reward for c in self.completions), default=None)

    def to_dict(self) -> dict[str, object]:
        """The attempt in JSON's own types."""
        return {**super().to_dict(), "sampling": self.sampling.model_dump()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The attempt whose `to_dict` gave `values`; KeyError if one is missing."""
        return cls(
            rung=values["rung"],
            sampling=sampling_of(values["sampling"]),
            completions=tuple(CompletionSample.from_dict(completion) for completion in values["completions"]),
        )


@dataclass(frozen=True)
class GroupSample(Record):
    """One epoch of a prompt as it stood when `step` had trained, with all of its attempts, the oldest first.

    `outcome`: "trained" on; "exhausted", its ladder used up, and trained on all the same if its completions have
    advantages (`algorithm.on_exhausted`); "waiting" for a resample in a later step; or "dropped", given up for its age
    or because a reward function failed on it. `prompt` is the problem as the data set has it, `answer` its ground
    truth, `difficulty` its class of difficulty, "" if there is none.
    """

    step: int
    prompt_id: str
    prompt: str
    difficulty: str
    answer: str
    outcome: Outcome
    attempts: tuple[AttemptSample, ...]

    @property
    def resampled(self) -> bool:
        """Whether there was more than one attempt."""
        return len(self.attempts) > 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The group whose `to_dict` gave `values`; KeyError if one is missing."""
        attempts = tuple(AttemptSample.from_dict(attempt) for attempt in values["attempts"])
        return super().from_dict({**values, "attempts": attempts})
