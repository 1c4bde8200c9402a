"""Tool calls in the text of a turn, and parsers for the formats of models.

A policy is rewarded for finding weaknesses, so the built-in parsers take any text, in linear time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SETTING = "environment.parser"

_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"\s*;?\s*")


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool in a turn; `error` is the reason if it cannot be read, else ""."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    def as_message(self, number: int) -> dict[str, Any]:
        """Return the call in the form of chat messages; its id has the `number` of the call in its turn."""
        return {
            "type": "function",
            "id": f"call{number:05d}",
            "function": {"name": self.name, "arguments": dict(self.arguments)},
        }


Parser = Callable[[str], Sequence[ToolCall]]
"""Returns the tool calls in the text of a turn, which has the control tokens of the model."""


def hermes(text: str) -> list[ToolCall]:
    """Return the calls of Hermes and Qwen: JSON with `name` and `arguments` between <tool_call> and </tool_call>."""
    return [_call(part.partition("</tool_call>")[0].strip()) for part in text.split("<tool_call>")[1:]]


def llama_json(text: str) -> list[ToolCall]:
    """Return the calls of Llama 3: the whole text is JSON with `name` and `parameters`, or several with ";" between."""
    start = len(text) - len(text.removeprefix("<|python_tag|>").lstrip())
    calls: list[ToolCall] = []
    while text.startswith("{", start):
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            return [*calls, ToolCall("", error=f"the call is not valid JSON ({error})")]
        calls.append(read_call(value))
        between = _BETWEEN.match(text, end)
        start = end if between is None else between.end()
    return calls


BUILT_IN: Mapping[str, Parser] = {"hermes": hermes, "llama_json": llama_json}


def _call(text: str) -> ToolCall:
    try:
        return read_call(json.loads(text))
    except (ValueError, RecursionError) as error:
        return ToolCall("", error=f"the call is not valid JSON ({error})")


def read_call(value: Any) -> ToolCall:
    """Return a call from a mapping with `name` and `arguments`, or `parameters`; the arguments may be JSON text."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return ToolCall("", error="the call has no name")
    name, arguments = value["name"], value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return ToolCall(name, error=f"the arguments are not valid JSON ({error})")
    if not isinstance(arguments, Mapping):
        return ToolCall(name, error="the arguments are no object")
    return ToolCall(name, dict(arguments))
