"""Settings of scoring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from adagrpo_ray.config.section import Gibibytes, PositiveInt, Seconds, Section


class RewardSettings(Section):
    """One reward function; a completion's reward is the weighted sum over all of them."""

    function: str = Field(..., min_length=1, description="a built-in name, or your own as 'module:function'")
    weight: float = Field(1.0, ge=-1e6, le=1e6, description="its factor in the sum")


class RewardsSettings(Section):
    """How completions are scored."""

    functions: tuple[RewardSettings, ...] = Field(
        (RewardSettings(function="exact"),), min_length=1, description="the reward functions"
    )
    correct_by: str | None = Field(
        None, min_length=1, description="the function whose score says that a completion is right; null: the last one"
    )
    correct_above: float = Field(0.0, description="a completion is right where that score is above this")
    check_prompts: int = Field(
        64,
        ge=0,
        description="prompts whose own ground truth is scored before the start; 64 show a fault of 5 % of them with a "
        "chance of 96 %; 0: none",
    )
    workers: PositiveInt = Field(1, description="processes that score, outside the learner's")
    timeout_s: Seconds = Field(30.0, description="seconds that scoring one group may take")
    memory_gib: Gibibytes | None = Field(
        4.0, description="memory that a scoring process may take, libraries aside; null: no limit"
    )
    on_error: Literal["drop", "score", "stop"] = Field(
        "drop",
        description="what a group costs that cannot be scored: the group, which is dropped (where all of a step are, "
        "the run stops), rewards of error_score for it, or the run",
    )
    error_score: float = Field(
        0.0, ge=-1e6, le=1e6, description="with on_error=score: the reward of all its completions, none of them right"
    )

    def conflicts(self) -> Iterator[str]:
        """A function that is named twice, and correctness by a function that is not named."""
        if len(set(self.names)) != len(self.names):
            yield f"rewards.functions names a function twice: {self.names}; give each one weight"
        if self.correct_by is not None and self.correct_by not in self.names:
            yield f"rewards.correct_by={self.correct_by!r} is none of rewards.functions {self.names}; name one of them"

    @property
    def names(self) -> list[str]:
        """The names of the reward functions, in their order."""
        return [reward.function for reward in self.functions]
