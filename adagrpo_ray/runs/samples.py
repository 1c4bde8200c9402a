"""Records of sampled groups for people to read: problem, attempts, completions, rewards, advantages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from adagrpo_ray.runs.group_codec import sampling_of
from adagrpo_ray.runs.record import Record
from adagrpo_ray.types import Part, SamplingParams, Turn

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
    """One attempt of a group, or a part of one.

    rung: its place on the ladder, from 0, or -1 for the base parameters.
    part: "whole"; or "pilot" or "commit" with `algorithm.pilot_size`.
    """

    rung: int
    sampling: SamplingParams
    completions: tuple[CompletionSample, ...]
    part: Part = "whole"

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
        (`algorithm.on_exhausted`); "waiting" for a resample or a commit in a later step; "dropped" because of its age,
        because a reward function failed on it, or because its prompt was given up.
    attempts: the oldest first; a pilot and its commit are entries of their own.
    size: the completions of an attempt, a pilot and its commit together; None in files of earlier versions.
    chance: the success rate that the allocation expected when it chose the size; None if it knew no earlier results.
    """

    step: int
    prompt_id: str
    prompt: str
    difficulty: str
    answer: str
    outcome: Outcome
    attempts: tuple[AttemptSample, ...]
    size: int | None = None
    chance: float | None = None

    @property
    def final(self) -> tuple[AttemptSample, ...]:
        """The newest attempt with all of its parts, the oldest first; empty if there is none."""
        return self.attempts[-2:] if self.attempts and self.attempts[-1].part == "commit" else self.attempts[-1:]

    @property
    def resampled(self) -> bool:
        """Whether it has more than one attempt."""
        return self.count() > 1

    def count(self, entries: int | None = None) -> int:
        """The number of attempts in its first `entries` entries, or in all; a pilot and its commit are one attempt."""
        return sum(attempt.part != "commit" for attempt in self.attempts[:entries])

    def title(self, number: int) -> str:
        """The name of entry `number`, counted from 0: "attempt 2", "attempt 1, pilot"."""
        part = self.attempts[number].part
        return f"attempt {self.count(number + 1)}" + ("" if part == "whole" else f", {part}")
