"""Settings of the reward functions and the scoring processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from adagrpo_ray.config.section import Gibibytes, PositiveInt, Seconds, Section
from adagrpo_ray.config.served_rewards import JudgeSettings, RewardModelSettings


class RewardSettings(Section):
    """One reward function. The reward of a completion is the weighted sum over all of them."""

    function: str | None = Field(
        None, min_length=1, description="a built-in name, or your own as 'module:function'; null: one of the next two"
    )
    judge: JudgeSettings | None = Field(None, description="a chat model behind an OpenAI-compatible server")
    reward_model: RewardModelSettings | None = Field(None, description="a reward model behind a vLLM server")
    weight: float = Field(1.0, ge=-1e6, le=1e6, description="factor of its scores in the sum")

    def conflicts(self) -> Iterator[str]:
        """Yield a conflict if the entry names no function, or several."""
        kinds = ("function", "judge", "reward_model")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            yield (
                f"an entry of rewards.functions has {' and '.join(given) or 'nothing that scores'}; give it one of "
                f"{', '.join(kinds)}"
            )

    @property
    def served(self) -> JudgeSettings | RewardModelSettings | None:
        """The settings of the model that scores; None for a function."""
        return self.judge or self.reward_model

    @property
    def name(self) -> str:
        """The name in metrics, samples and other settings."""
        return self.function or (self.served.name if self.served is not None else "")


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
    max_concurrent: PositiveInt = Field(
        32, description="groups that coroutine functions (async def) score at the same time, in a process of their own"
    )
    timeout_s: Seconds = Field(
        30.0, description="seconds that functions may take to score one group; judges and reward models have their own"
    )
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
        return [reward.name for reward in self.functions]

    @property
    def own(self) -> tuple[RewardSettings, ...]:
        """The entries that are functions, not models behind servers."""
        return tuple(reward for reward in self.functions if reward.served is None)

    @property
    def served(self) -> tuple[JudgeSettings | RewardModelSettings, ...]:
        """The settings of the judges and reward models."""
        return tuple(reward.served for reward in self.functions if reward.served is not None)

    @property
    def decides(self) -> str:
        """The name of the function whose score decides on correctness."""
        return self.correct_by or self.names[-1]
