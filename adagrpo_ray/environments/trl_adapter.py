"""Environments for TRL's `environment_factory` (TRL 1.16): objects whose public methods are tools.

TRL's `tools=` need no adapter: they are `environment.tools`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from adagrpo_ray.data.messages import Message
from adagrpo_ray.environments.protocol import Reply, checked_reward
from adagrpo_ray.extensions.loading import load_function

SETTING = "environment.arguments.factory"
NOT_TOOLS = ("reset", "get_reward")
"""Public methods of such an object that are no tools."""


class TrlEnvironment:
    """An environment over the object that `factory` makes, a class or a function, also as 'module:Class'.

    - `reset` gets the columns of the row. A text that it returns is appended to the prompt.
    - The episode ends with the first turn without a tool call. Its reward is that of `get_reward`, if there is one.
    """

    def __init__(self, factory: str | Callable[[], Any], prompt: str = "prompt") -> None:
        """`prompt` is the column with the prompt, as in data.columns.prompt."""
        make = load_function(factory, SETTING, ()) if isinstance(factory, str) else factory
        self._made, self._prompt = make(), prompt
        self.tools = [
            getattr(self._made, name)
            for name, _ in inspect.getmembers(type(self._made), predicate=inspect.isfunction)
            if name not in NOT_TOOLS and not name.startswith("_")
        ]

    def reset(self, row: Mapping[str, Any]) -> list[Message] | None:
        """Reset the object; returns the prompt with the text that it returns, or None if it returns none."""
        known = inspect.signature(self._made.reset).parameters.values()
        every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known)
        names = {parameter.name for parameter in known}
        text = self._made.reset(**{key: value for key, value in row.items() if every or key in names})
        if text is None:
            return None
        prompt = row.get(self._prompt)
        messages = [dict(m) for m in prompt] if isinstance(prompt, list) else []
        messages = messages or [{"role": "user", "content": str(row["problem"])}]
        return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}{text}"}]

    async def step(self, message: Message) -> Reply:
        """End the episode: its tool calls have been run before."""
        return [], await self.end(), True, {}

    async def end(self) -> float:
        """Return the reward of the object."""
        if not callable(getattr(self._made, "get_reward", None)):
            return 0.0
        reward = self._made.get_reward()
        return checked_reward(await reward if inspect.isawaitable(reward) else reward, "get_reward")
