"""Settings of the reward functions and the scoring processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from adagrpo_ray.config.section import Gibibytes, PositiveInt, Seconds, Section

NEGATIVE = ("answer", "format_approximate", "number")
"""Built-in reward functions that have scores below 0."""


class RewardSettings(Section):
    """One reward function. The reward of a completion is the weighted sum over all of them."""

    function: str = Field(..., min_length=1, description="a built-in name, or your own as 'module:function'")
    weight: float = Field(1.0, ge=-1e6, le=1e6, description="factor of its scores in the sum")


class RewardsSettings(Section):
    """How completions are scored."""

    functions: tuple[RewardSettings, ...] = Field(
        (RewardSettings(function="exact"),), min_length=1, description="the reward functions"
    )
    correct_by: str | None = Field(
        None, min_length=1, description="the function whose score decides on correctness; null: the last one"
    )
    correct_above: float = Field(0.0, description="a completion is correct if that score is above this")
    check_prompts: int = Field(
        64,
        ge=0,
        description="prompts whose ground truth is scored before the start; 64 of them find a fault of 5 % of all "
        "prompts with a probability of 96 %; 0: none",
    )
    workers: PositiveInt = Field(1, description="scoring processes, separate from the learner")
    timeout_s: Seconds = Field(30.0, description="seconds that scoring one group may take")
    memory_gib: Gibibytes | None = Field(
        4.0, description="memory that a scoring process may take, without libraries; null: no limit"
    )
    on_error: Literal["drop", "score", "stop"] = Field(
        "drop",
        description="if a group cannot be scored: drop it (the run stops if all groups of a step are dropped), give "
        "its completions the reward error_score, or stop the run",
    )
    error_score: float = Field(
        0.0, ge=-1e6, le=1e6, description="with on_error=score: the reward of each completion, none of them correct"
    )

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts of the functions: one named twice, or correctness by one that is not named."""
        if len(set(self.names)) != len(self.names):
            yield f"rewards.functions names a function twice: {self.names}; give each one weight"
        if self.correct_by is not None and self.correct_by not in self.names:
            yield f"rewards.correct_by={self.correct_by!r} is none of rewards.functions {self.names}; name one of them"

    @property
    def names(self) -> list[str]:
        """The names of the reward functions, in their order."""
        return [reward.function for reward in self.functions]
