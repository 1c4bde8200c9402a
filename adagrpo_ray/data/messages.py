"""Reading the chat messages in a row of data, in the layouts of common data sets. Other layouts are refused.

Accepted are a text; a list of `{"role", "content"}`; ShareGPT's `{"from", "value"}`; an object with such a list under
`messages`, `conversations` or `conversation`; and any of these as JSON or Python text, as in CSV files. The content may
be a list of text parts. `name`, `tool_calls`, `tool_call_id`, `reasoning_content` and `thinking` of a message are kept.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from adagrpo_ray.errors import DataError

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM_ROLES = ("system", "developer")
SHAREGPT = {
    **{role: role for role in ROLES},
    **{"human": "user", "gpt": "assistant", "model": "assistant", "observation": "tool"},
}
"""Roles by their names in ShareGPT's layout."""
REASONING = ("reasoning_content", "thinking")
KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", *REASONING)
NESTED = ("messages", "conversations", "conversation")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_CHAT_AS_TEXT = re.compile(r"\s*(?:\[\s*)?\{\s*[\"'](?:role|content|from|value|messages|conversations?)[\"']\s*:")


@dataclass(frozen=True)
class Chat:
    """The messages of a prompt, and the schemas of the tools that the model may call."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def continues(self) -> bool:
        """Whether the completion continues the last message, which is the assistant's."""
        return str(self.messages[-1]["role"]) == "assistant"

    @property
    def problem(self) -> str:
        """The last message of the user."""
        return str(next(m["content"] for m in reversed(self.messages) if m["role"] == "user"))

    @property
    def has_system_message(self) -> bool:
        """Whether it begins with a system message that is not blank."""
        return self.messages[0]["role"] in SYSTEM_ROLES and bool(self.messages[0]["content"].strip())

    def after(self, system: str) -> Chat:
        """Return the chat with a system message at the beginning, in place of a blank one."""
        rest = self.messages[1:] if self.messages[0]["role"] in SYSTEM_ROLES else self.messages
        return Chat(({"role": "system", "content": system}, *rest), self.tools)


def read_chat(prompt: Any, row: Mapping[str, Any]) -> Chat | None:
    """Return the chat of a prompt column, with the tools in the column `tools` of its row; None without a question.

    Raises DataError if the layout of the prompt is unknown, or if the row has images or other unsupported columns.
    """
    _refuse_unsupported_columns(row)
    value, tools = _unpacked(prompt)
    if isinstance(value, str):
        messages = [{"role": "user", "content": value}]
    elif value is None or isinstance(value, bool | int | float):
        return None
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        messages = [_message(entry, number) for number, entry in enumerate(value, start=1)]
    else:
        raise DataError(f"the prompt is a {type(value).__name__}; give a text or a list of chat messages")
    if messages and messages[-1]["role"] == "assistant":
        if messages[-1].get("tool_calls"):
            raise DataError("the prompt ends with a tool call; end it with the tool's answer or without that message")
        if not messages[-1]["content"].strip() and not any(messages[-1].get(key) for key in REASONING):
            messages.pop()  # the same as no message: the completion begins the assistant's turn
    if not any(m["role"] == "user" and m["content"].strip() for m in messages):
        return None
    return Chat(tuple(messages), _tools(tools if tools is not None else row.get("tools")))


def _unpacked(prompt: Any) -> tuple[Any, Any]:
    """Return a text, a list of messages or None, and the tools that are given with the messages."""
    value = _from_text(prompt) if isinstance(prompt, str) else prompt
    if not isinstance(value, Mapping):
        return value, None
    if _is_message(value):
        return [value], None
    key = next((key for key in NESTED if value.get(key) is not None), None)
    others = [name for name, held in value.items() if name not in (key, "tools") and held is not None]
    if key is None or others:
        raise DataError(
            f"the prompt is an object with {', '.join(map(repr, others)) or 'nothing in it'}; give a text, a list of "
            f"chat messages, or an object with {' or '.join(NESTED[:2])} and nothing else but tools"
        )
    nested = value[key]
    return (_from_text(nested) if isinstance(nested, str) else nested), value.get("tools")


def _from_text(text: str) -> Any:
    """Return the value of a text that is a chat in JSON or Python; else the text, or None if it is blank."""
    if not text.strip():
        return None
    if not _CHAT_AS_TEXT.match(text):
        return text
    value: Any = None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        break
    if isinstance(value, Mapping) and (_is_message(value) or any(key in value for key in NESTED)):
        return value
    if isinstance(value, list) and all(isinstance(entry, Mapping) and _is_message(entry) for entry in value):
        return value
    if text.lstrip().startswith("["):
        raise DataError(
            f"the prompt {text.strip()[:60]!r} looks like chat messages as text, and is neither JSON nor Python"
        )
    return text


def _is_message(value: Mapping[str, Any]) -> bool:
    return ("role" in value and len({"content", "tool_calls"} & set(value)) > 0) or {"from", "value"} <= set(value)


def _message(value: Any, number: int) -> Message:
    """Return one message. Raises DataError if it is none or has keys or values that are not supported."""
    place = f"message {number} of the prompt"
    if not isinstance(value, Mapping):
        raise DataError(f"{place} is a {type(value).__name__}; each must be an object with role and content")
    found = {key: held for key, held in value.items() if held is not None and held != []}
    if {"from", "value"} & set(found) and not {"role", "content"} & set(found):
        found = {{"from": "role", "value": "content"}.get(key, key): held for key, held in found.items()}
        found["role"] = SHAREGPT.get(str(found.get("role")).lower(), found.get("role"))
    if other := [key for key in found if key not in KEYS]:
        raise DataError(
            f"{place} has {', '.join(map(repr, other))}, which no chat template is known to read; remove it from the "
            f"data, or use {', '.join(KEYS)}"
        )
    role = found.get("role")
    if role not in ROLES:
        near = difflib.get_close_matches(str(role).lower(), ROLES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(ROLES)}"
        raise DataError(f"{place} has the role {role!r}; {hint}")
    message: Message = {**found, "content": _content(found.get("content", ""), place)}
    for key in ("name", "tool_call_id", *REASONING):
        if not isinstance(message.get(key, ""), str):
            raise DataError(f"{place} has a {key} that is a {type(message[key]).__name__}; it must be a text")
    if "tool_calls" in message:
        message["tool_calls"] = [_tool_call(call, place) for call in _listed(message["tool_calls"], place)]
    return message


def _content(value: Any, place: str) -> str:
    """Return the text of a content, with its parts as lines, as vLLM has it for templates that take texts."""
    if isinstance(value, str):
        return value
    parts = list(value) if isinstance(value, Sequence) and not isinstance(value, bytes) else [value]
    texts = []
    for part in parts:
        found = {key: held for key, held in part.items() if held is not None} if isinstance(part, Mapping) else {}
        if set(found) != {"type", "text"} or found["type"] != "text" or not isinstance(found["text"], str):
            kind = found.get("type") or type(part).__name__
            raise DataError(f"{place} has a content of {kind!r}; only texts are read")
        texts.append(found["text"])
    return "\n".join(texts)


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    """Return a tool call with its arguments as an object. OpenAI's layout has them as JSON text."""
    plain = _without_nulls(call)
    function = plain.get("function", plain) if isinstance(plain, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{place} has a tool call without the name of a function")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} calls {function['name']!r} with arguments that are not JSON ({error})") from None
    if not isinstance(arguments, Mapping):
        raise DataError(f"{place} calls {function['name']!r} with a {type(arguments).__name__}; give an object")
    named = {**function, "arguments": dict(arguments)}
    return {**plain, "function": named} if "function" in plain else {"type": "function", "function": named}


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the schemas of tools in a column, which may be JSON text; () if there are none."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value) if value.strip() else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ()
    listed: list[Any] = _without_nulls(list(value)) if isinstance(value, list | tuple) else [value]
    for entry in listed:
        function = entry.get("function", entry) if isinstance(entry, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                "the column 'tools' is passed to the chat template and must be a list of tool schemas, each with the "
                "name of a function; rename the column if it is something else"
            )
    return tuple(listed)


def _refuse_unsupported_columns(row: Mapping[str, Any]) -> None:
    for key in MEDIA:
        held = row.get(key)
        if held is not None and not isinstance(held, str | bool | int | float) and not _is_empty(held):
            raise DataError(f"the column {key!r} holds a {type(held).__name__}; only texts are supported, remove it")
    if not _is_empty(row.get("chat_template_kwargs")):
        raise DataError("the column 'chat_template_kwargs' is not read; set data.template_kwargs for all rows")


def _is_empty(value: Any) -> bool:
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def _listed(value: Any, place: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f"{place} has tool_calls that are a {type(value).__name__}; give a list")
    return value


def _without_nulls(value: Any) -> Any:
    """Return the value without keys that hold None: a table adds those for each key of any other row."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(held) for key, held in value.items() if held is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(held) for held in value]
    return value
