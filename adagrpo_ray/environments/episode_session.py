"""One episode in the process of its group: an environment, its tools, and the parser of tool calls."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.data.messages import Message
from adagrpo_ray.environments import protocol
from adagrpo_ray.environments.protocol import StepResult
from adagrpo_ray.environments.tool_calls import Parser, ToolCall
from adagrpo_ray.environments.tools import Tools, of_environment
from adagrpo_ray.errors import ExtensionError


@dataclass(frozen=True)
class Parts:
    """The parts that all episodes share, loaded once.

    - `make`: makes an environment; None if there are only tools.
    - `tools`: the functions of `environment.tools`.
    - `parse`: None if the policy has no tools.
    """

    settings: EnvironmentSettings
    make: Callable[..., Any] | None
    tools: tuple[Callable[..., Any], ...]
    parse: Parser | None


class Session:
    """One episode.

    Functions that are no coroutine functions run in `threads`, so that the episodes of a group run side by side. Python
    cannot end a thread: it ends with the process of the group.
    """

    def __init__(self, parts: Parts, threads: ThreadPoolExecutor) -> None:
        self._parts, self._threads = parts, threads
        self._made: Any = None
        self._tools = Tools(())
        self._own_calls = False  # whether the environment runs calls of its own tools

    async def begin(self, row: Mapping[str, Any], seed: int) -> tuple[Message, ...] | None:
        """Make the environment and reset it; returns the messages of the prompt, or None for those of the row."""
        if self._parts.make is not None:
            self._made = await self._run(self._parts.make, **self._parts.settings.arguments)
            protocol.check_class(self._made, str(self._parts.settings.name))
        functions, schemas = of_environment(self._made)
        self._own_calls = bool(schemas)
        self._tools = Tools((*self._parts.tools, *functions))
        if self._made is None:
            return None
        more = {"seed": seed} if protocol.takes_seed(self._made.reset) else {}
        return protocol.opening_messages(await self._run(self._made.reset, row, **more))

    async def step(self, text: str, raw: str) -> StepResult:
        """Take a turn of the policy: run its tool calls, or else pass it to the environment.

        `text` is the content of the turn, `raw` the same with control tokens, for the parser. Without an environment a
        turn without calls ends the episode.
        """
        calls = [] if self._parts.parse is None else await self._run(self._parse, raw)
        if calls and (not self._own_calls or all(call.name in self._tools for call in calls)):
            return await self._called(calls)
        if self._made is None:
            return StepResult((), 0.0, done=True)
        message: Message = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [call.as_message(number) for number, call in enumerate(calls)]
        return protocol.step_result(await self._run(self._made.step, message))

    async def end(self) -> float:
        """Return the reward of an episode that a limit ended."""
        if not callable(getattr(self._made, "end", None)):
            return 0.0
        return protocol.checked_reward(await self._run(self._made.end), "end")

    async def close(self) -> None:
        """Free the resources of the environment."""
        if callable(getattr(self._made, "close", None)):
            await self._run(self._made.close)

    async def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the environment's data."""
        assert self._parts.make is not None
        made = await self._run(self._parts.make, **self._parts.settings.arguments)
        if not callable(getattr(made, "rows", None)):
            raise ExtensionError(
                f"data.source=environment: {type(made).__name__} has no method rows; add one that returns a list of "
                "rows, or give other data"
            )
        found = await self._run(made.rows)
        rows = list(found) if not isinstance(found, Mapping | str) else []
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise ExtensionError("data.source=environment: rows() must return a list of mappings, and not an empty one")
        return [dict(row) for row in rows]

    def _parse(self, raw: str) -> list[ToolCall]:
        assert self._parts.parse is not None
        return list(self._parts.parse(raw))

    async def _called(self, calls: list[ToolCall]) -> StepResult:
        results = [await self._tools.run(call, number, self._run) for number, call in enumerate(calls)]
        return StepResult(
            messages=tuple(message for message, _ in results),
            reward=0.0,
            done=False,
            tool=", ".join(dict.fromkeys(str(message["name"]) for message, _ in results)),
            error="; ".join(error for _, error in results if error),
        )

    async def _run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function, in a thread unless it is a coroutine function."""
        try:
            if inspect.iscoroutinefunction(function):
                return await function(*arguments, **named)
            loop = asyncio.get_running_loop()
            returned = await loop.run_in_executor(self._threads, partial(function, *arguments, **named))
            return await returned if inspect.isawaitable(returned) else returned
        except SystemExit as error:  # would end the event loop, and with it all episodes of the group
            raise ExtensionError(f"it called sys.exit({error.code!r:.100})") from None
