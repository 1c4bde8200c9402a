"""Tool calls in the text of a turn: parsers for the formats of models, and the choice of one.

A policy is rewarded for finding weaknesses, so the built-in parsers take any text, in linear time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.environments import AUTO
from adagrpo_ray.data.observation_text import written_call
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.extensions.loading import check_call, load_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTING = "environment.parser"
VLLM = "vllm:"
"""Prefix of the names of vLLM's parsers."""

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
        calls.append(_read(value))
        between = _BETWEEN.match(text, end)
        start = end if between is None else between.end()
    return calls


BUILT_IN: Mapping[str, Parser] = {"hermes": hermes, "llama_json": llama_json}


def chosen_parser(name: str, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> str:
    """Return the name of the parser: `name` or, for "auto", the built-in one that reads the template's own calls.

    `kwargs` are the arguments of the chat template. Raises ConfigError if none reads them.
    """
    if name != AUTO:
        return name
    text, called, arguments = written_call(tokenizer, kwargs)
    for known, parse in BUILT_IN.items():
        if [(call.name, dict(call.arguments)) for call in parse(text)] == [(called, arguments)]:
            return known
    raise ConfigError(
        f"{SETTING}={AUTO}: no built-in parser reads the tool calls that the chat template writes ({text!r:.200}); "
        f"name one of {', '.join(BUILT_IN)}, a parser of vLLM as '{VLLM}NAME', your own as 'module:function', or "
        "give another data.chat_template"
    )


def load_parser(
    name: str, given: Given = NOTHING, tokenizer_path: str = "", tools: Sequence[Mapping[str, Any]] = ()
) -> Parser:
    """Return the parser called `name`; those of vLLM need the tokenizer and the schemas of the tools.

    Raises ConfigError if there is no such parser.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name.startswith(VLLM):
        from adagrpo_ray.environments.vllm_parsers import vllm_parser

        return vllm_parser(name.removeprefix(VLLM), tokenizer_path, tools)
    function = load_function(name, SETTING, [AUTO, *BUILT_IN], given)
    check_call(function, f"{SETTING}: {name!r}", ["text"])
    return lambda text: _own(function(text), name)


def _own(returned: Any, name: str) -> list[ToolCall]:
    """Return the calls of a parser of the user, which returns a list of {"name", "arguments"}."""
    if not isinstance(returned, list | tuple):
        raise ExtensionError(f"{SETTING}: {name!r} returned {returned!r:.200}; return a list of calls, [] for none")
    return [each if isinstance(each, ToolCall) else _read(each) for each in returned]


def _call(text: str) -> ToolCall:
    try:
        return _read(json.loads(text))
    except (ValueError, RecursionError) as error:
        return ToolCall("", error=f"the call is not valid JSON ({error})")


def _read(value: Any) -> ToolCall:
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
