"""Records of sampled groups for people to read: problem, attempts, completions, rewards, advantages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from adagrpo_ray.runs.group_codec import sampling_of
from adagrpo_ray.runs.record import Record
from adagrpo_ray.types import SamplingParams, Turn

Outcome = Literal["trained", "exhausted", "waiting", "dropped"]

OF_EPISODES = ("observed_tokens", "turns")
"""The fields of a completion that only episodes have."""


@dataclass(frozen=True)
class TurnSample(Turn, Record):
    """One turn of an episode."""


@dataclass(frozen=True)
class CompletionSample(Record):
    """One completion.

    tokens: its length; of an episode, the number of tokens that the policy wrote.
    weight_version: the version of the adapter that sampled it.
    rewards: by reward function; None for one that does not apply.
    advantage: the advantage that it was trained with; None if it was not trained on.
    observed_tokens: the number of tokens that the environment wrote; absent from the JSON if it is 0.
    turns: the turns of an episode; absent from the JSON if there are none.
    """

    text: str
    tokens: int
    finish_reason: str
    weight_version: int
    reward: float
    rewards: Mapping[str, float | None]
    correct: bool
    advantage: float | None
    observed_tokens: int = 0
    turns: tuple[TurnSample, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The completion in JSON types, without the fields of episodes if it is none."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if value or name not in OF_EPISODES}


@dataclass(frozen=True)
class AttemptSample(Record):
    """One attempt of a group; `rung` is its place on the ladder, from 0, or -1 for the base parameters."""

    rung: int
    sampling: SamplingParams
    completions: tuple[CompletionSample, ...]

    @property
    def best_reward(self) -> float | None:
        """The highest reward; None if the attempt has no completions."""
        return max((c.reward for c in self.completions), default=None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The attempt whose `to_dict` returned `values`. Raises as `Record.from_dict` does."""
        return super().from_dict({**values, "sampling": sampling_of(values["sampling"])})


@dataclass(frozen=True)
class GroupSample(Record):
    """A group of one prompt, as it was after training step `step`.

    prompt: the text of the problem in the data set.
    difficulty: "" if the prompt has none.
    answer: the ground truth.
    outcome: "trained"; "exhausted" if no rung was left, trained on nevertheless if its completions have advantages
        (`algorithm.on_exhausted`); "waiting" for a resample in a later step; "dropped" because of its age, because a
        reward function failed on it, or because its prompt was given up.
    attempts: the oldest first.
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
        """Whether it has more than one attempt."""
        return len(self.attempts) > 1
