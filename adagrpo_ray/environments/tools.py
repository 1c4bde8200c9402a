"""Tools: plain functions that the policy calls, and the messages with their results."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from adagrpo_ray.data.messages import Message
from adagrpo_ray.environments.tool_calls import ToolCall
from adagrpo_ray.environments.tool_schema import misfit, schema_of
from adagrpo_ray.errors import ConfigError

Run = Callable[..., Awaitable[Any]]
"""Calls a function with arguments, outside of the event loop if it is no coroutine function."""


class Tools:
    """Functions by their names, with their schemas. Raises ConfigError if two have the same name."""

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        self.schemas = [schema_of(function) for function in functions]
        names = [str(schema["function"]["name"]) for schema in self.schemas]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"environment.tools: two have the name {twice[0]!r}; rename one of them")
        self._functions = dict(zip(names, functions, strict=True))
        self._known = dict(zip(names, self.schemas, strict=True))

    def __contains__(self, name: str) -> bool:
        return name in self._functions

    async def run(self, call: ToolCall, number: int, run: Run) -> tuple[Message, str]:
        """Return the message with the result of a call, and the error if it failed, else "".

        `number` is that of the call in its turn. An error is the content of the message, so that the policy can call
        again: a call that fails is part of an episode, not its end. A MemoryError passes through.
        """
        error, content = call.error, ""
        if not error and call.name not in self:
            error = f"there is no tool {call.name}; use {', '.join(self._functions) or 'none'}"
        error = error or misfit(self._known[call.name], call.arguments)
        if not error:
            try:
                content = _text(await run(self._functions[call.name], **call.arguments))
            except MemoryError:
                raise
            except Exception as raised:  # a tool may raise anything
                error = f"{type(raised).__name__}: {raised}"[:500]
        message: Message = {
            "role": "tool",
            "name": call.name or "unknown",
            "content": f"error: {error}" if error else content,
            "tool_call_id": str(call.as_message(number)["id"]),
        }
        return message, error


def of_environment(made: object) -> tuple[list[Callable[..., Any]], list[dict[str, Any]]]:
    """Return the tools of an environment that are run for it, and the schemas of those that it runs itself.

    There are none if `made` is None. Raises ConfigError if something among them is neither a function nor a schema.
    """
    listed = list(getattr(made, "tools", None) or ())
    functions = [tool for tool in listed if callable(tool)]
    schemas = [tool for tool in listed if isinstance(tool, dict)]
    if len(functions) + len(schemas) < len(listed):
        raise ConfigError(
            f"environment.name: {type(made).__name__}.tools has something that is neither a function nor a schema; "
            "give functions with types and docstrings"
        )
    return functions, schemas


def _text(result: Any) -> str:
    """Return a result as the policy reads it: a text as it is, other values as JSON if it has them."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(result)
