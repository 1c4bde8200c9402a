"""Environments of the package verifiers (0.3.0): those that `load_environment` returns.

Such an environment calls a model. Here the model is a client whose answers are the turns of the policy: the rollout of
the environment waits in it until the next `step`. Its rubric scores the rollout at the end.

Its later interface, `verifiers.v1`, runs programs that call a model over HTTP. It is not adapted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from adagrpo_ray.data.messages import Message
from adagrpo_ray.environments.protocol import Reply
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.loading import load_function

SETTING = "environment.arguments.environment"
INSTALL = "pip install verifiers==0.3.0"
MODEL = "policy"
"""Name of the model in rollouts."""


class VerifiersEnvironment:
    """An environment of verifiers, by the name of its package or the 'module:function' that returns it.

    `arguments` are those of that function. Its data are `rows`, for data.source=environment with
    data.columns.ground_truth=answer. Rewards that compare the rollouts of a group are refused.
    """

    def __init__(self, environment: str, arguments: Mapping[str, Any] | None = None) -> None:
        self._environment = _load(environment, json.dumps(dict(arguments or {}), sort_keys=True))
        self.tools = [_schema(tool) for tool in self._environment.tool_defs or ()]
        self._asked: asyncio.Queue[tuple[list[Any], asyncio.Future[Any]]] = asyncio.Queue()
        self._rollout: asyncio.Task[Any] | None = None
        self._answer: asyncio.Future[Any] | None = None  # the answer that the rollout waits for
        self._said = 0  # messages up to the newest turn of the policy

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of its data set. A row without an answer has a dash, since only the rubric needs one."""
        return [{**row, "answer": row.get("answer") or "-"} for row in self._environment.get_dataset()]

    async def reset(self, row: Mapping[str, Any]) -> list[Message] | None:
        """Begin the rollout of a row; returns its prompt, or None if it is that of the row."""
        prompt = [{"role": "user", "content": row["problem"]}]
        given = {"prompt": prompt, "example_id": 0, **{key: value for key, value in row.items() if key != "problem"}}
        run = self._environment.run_rollout(given, _client(self._asked), MODEL, {})
        self._rollout = asyncio.create_task(run)
        asked = await self._next()
        if asked is None:
            self._reward()  # raises the error of the rollout, if there is one
            raise ExtensionError("the rollout of verifiers ended before the first turn")
        messages = [_plain(message) for message in asked]
        return None if messages == _texts(given["prompt"]) else messages

    async def step(self, message: Message) -> Reply:
        """Answer the rollout with a turn; returns the messages that it adds, or its reward at the end."""
        before = self._said
        self._reply(_response(message))
        asked = await self._next()
        if asked is None:
            return [], self._reward(), True, {}
        if len(asked) <= before + 1 or getattr(asked[before], "role", "") != "assistant":
            raise ExtensionError("the environment of verifiers changes earlier messages; only appending is supported")
        return [_plain(each) for each in asked[before + 1 :]], 0.0, False, {}

    async def end(self) -> float:
        """End the rollout as if its prompt had become too long, and return its reward."""
        from verifiers.errors import OverlongPromptError

        if self._answer is not None:
            self._answer.set_exception(OverlongPromptError("a limit of the trainer ended the episode"))
            self._answer = None
        if await self._next() is not None:
            raise ExtensionError("the environment of verifiers continues after the end of its rollout")
        return self._reward()

    async def close(self) -> None:
        """Cancel the rollout, which cleans up after itself."""
        if self._rollout is not None and not self._rollout.done():
            self._rollout.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._rollout

    async def _next(self) -> list[Any] | None:
        """Return the messages of the next request of the rollout; None if it has ended."""
        assert self._rollout is not None
        asking = asyncio.create_task(self._asked.get())
        try:
            await asyncio.wait({asking, self._rollout}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return None
            messages, self._answer = asking.result()
            self._said = len(messages)
            return messages
        finally:
            asking.cancel()

    def _reply(self, response: Any) -> None:
        assert self._answer is not None
        self._answer.set_result(response)
        self._answer = None

    def _reward(self) -> float:
        assert self._rollout is not None
        output = self._rollout.result()
        if output.get("error"):
            raise ExtensionError(f"the rollout of verifiers failed: {output['error']!r:.300}")
        return float(output["reward"] or 0.0)


@lru_cache(maxsize=8)
def _load(name: str, arguments: str) -> Any:
    """Return the environment, which is made once: in the process that forks those of groups.

    Its constructor sets signal handlers, which works in a main thread only.
    """
    try:
        import verifiers
    except ImportError as error:
        raise ConfigError(f"{SETTING}={name!r} needs the package verifiers ({error}): {INSTALL}") from None
    values = json.loads(arguments)
    found = load_function(name, SETTING, ())(**values) if ":" in name else verifiers.load_environment(name, **values)
    if not isinstance(found, verifiers.Environment):
        raise ConfigError(f"{SETTING}={name!r} makes a {type(found).__name__}, no verifiers.Environment")
    if found.requires_group_rollouts:
        raise ConfigError(
            f"{SETTING}={name!r} has a rubric that scores a group of rollouts together; use rewards of one rollout, "
            "and write the others as reward functions"
        )
    return found


def _client(asked: asyncio.Queue[tuple[list[Any], asyncio.Future[Any]]]) -> Any:
    """Return a client of verifiers that puts each request into the queue and waits for its answer."""
    from verifiers.clients.client import Client

    class PolicyClient(Client):  # type: ignore[misc]
        """Passes messages and responses on, in the forms of verifiers."""

        def setup_client(self, config: Any) -> None:
            """There is no client of a provider."""

        async def to_native_tool(self, tool: Any) -> Any:
            """Return the tool as it is."""
            return tool

        async def to_native_prompt(self, messages: Any) -> tuple[list[Any], dict[str, Any]]:
            """Return the messages as they are."""
            return list(messages), {}

        async def get_native_response(
            self, prompt: list[Any], model: str, sampling_args: Any, tools: Any = None, **more: Any
        ) -> Any:
            """Wait for the turn of the policy."""
            answer = asyncio.get_running_loop().create_future()
            asked.put_nowait((prompt, answer))
            return await answer

        async def raise_from_native_response(self, response: Any) -> None:
            """Accept every turn."""

        async def from_native_response(self, response: Any) -> Any:
            """Return the response as it is."""
            return response

        async def close(self) -> None:
            """There is nothing to close."""

    return PolicyClient(None)


def _response(message: Message) -> Any:
    """Return a turn of the policy in the form of verifiers."""
    from verifiers.types import Response, ResponseMessage, ToolCall

    calls = [
        ToolCall(id=call["id"], name=call["function"]["name"], arguments=json.dumps(call["function"]["arguments"]))
        for call in message.get("tool_calls", ())
    ]
    said = ResponseMessage(
        content=message["content"],
        tool_calls=calls or None,
        finish_reason="tool_calls" if calls else "stop",
        is_truncated=False,
    )
    return Response(id="turn", created=0, model=MODEL, message=said)


def _plain(message: Any) -> Message:
    """Return a message of verifiers as a plain one; its content has to be text."""
    content = message.content
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else part.model_dump() for part in content]
        if any(part.get("type") != "text" for part in parts):
            raise ExtensionError("the environment of verifiers sends a message that is no text")
        content = "\n".join(str(part["text"]) for part in parts)
    plain: Message = {"role": "user" if message.role == "text" else str(message.role), "content": content or ""}
    if message.role == "tool":
        plain["tool_call_id"] = str(message.tool_call_id)
    if getattr(message, "tool_calls", None):
        plain["tool_calls"] = [
            {
                "type": "function",
                "id": str(call.id),
                "function": {"name": str(call.name), "arguments": json.loads(call.arguments or "{}")},
            }
            for call in message.tool_calls
        ]
    return plain


def _texts(prompt: Any) -> list[Message]:
    """Return the messages of a prompt column as `_plain` has them, without keys that are null."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    listed: Sequence[Any] = prompt if isinstance(prompt, list) else []
    return [{key: value for key, value in dict(each).items() if value is not None} for each in listed]


def _schema(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
