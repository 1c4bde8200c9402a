"""Settings of environments and tools, with which a completion is an episode of several turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, JsonValue, StringConstraints

from adagrpo_ray.config.section import Gibibytes, PositiveInt, Seconds, Section

ENVIRONMENT = "environment"
"""Name of the section, of the data source of its rows, and of the reward function of its rewards."""
NAME, TOOLS = f"{ENVIRONMENT}.name", f"{ENVIRONMENT}.tools"
"""The settings with functions of the user, for messages."""

AUTO = "auto"
"""Value of `environment.parser` for the parser that reads the calls that the chat template writes."""

Named = Annotated[str, StringConstraints(min_length=1)]


class EnvironmentSettings(Section):
    """Episodes: after each turn of the policy an environment or a tool answers, and the policy continues.

    Without a name and without tools each completion is one answer.
    """

    name: str | None = Field(
        None, min_length=1, description="class or function that makes an environment, as 'module:Class'; null: none"
    )
    arguments: dict[str, JsonValue] = Field({}, description="keyword arguments of that class or function")
    tools: tuple[Named, ...] = Field(
        (), description="functions that the policy may call, with types and docstrings, as 'module:function'"
    )
    parser: str = Field(
        AUTO,
        min_length=1,
        description="format of tool calls: auto (that of the chat template), hermes, llama_json, a parser of vLLM as "
        "'vllm:NAME', or your own as 'module:function'",
    )
    max_turns: PositiveInt = Field(8, description="most turns of the policy in an episode")
    max_turn_tokens: PositiveInt | None = Field(
        None, description="most tokens of one turn of the policy; null: the rest of rollout.max_new_tokens"
    )
    max_observation_tokens: PositiveInt = Field(
        512, description="most tokens of all observations of an episode, which ends before it takes more"
    )
    timeout_s: Seconds = Field(30.0, description="seconds that one reset or step of an environment may take")
    memory_gib: Gibibytes | None = Field(
        4.0, description="memory that the process of a group's episodes may take; null: no limit"
    )
    processes: PositiveInt = Field(
        64, description="most processes at a time, one for each group with episodes; other groups wait"
    )

    @property
    def active(self) -> bool:
        """Whether completions are episodes."""
        return self.name is not None or bool(self.tools)

    def longest(self, max_new_tokens: int) -> int:
        """Return the most tokens after a prompt: of a completion of `max_new_tokens`, or of an episode as a whole.

        Those of an episode are the turns of the policy, which share `max_new_tokens`, and the observations between
        them; a single turn has none.
        """
        if not self.active:
            return max_new_tokens
        written = max_new_tokens
        if self.max_turn_tokens is not None:
            written = min(written, self.max_turns * self.max_turn_tokens)
        return written + (self.max_observation_tokens if self.max_turns > 1 else 0)

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts: arguments of no environment, and a tool that is named twice."""
        if self.arguments and self.name is None:
            yield (
                f"environment.arguments={self.arguments} are those of environment.name, which is null; name the "
                "environment, or remove them"
            )
        if len(set(self.tools)) != len(self.tools):
            yield f"environment.tools names a function twice: {list(self.tools)}; name each one once"
