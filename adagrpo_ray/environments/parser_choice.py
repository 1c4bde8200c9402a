"""The parser of tool calls that `environment.parser` names: a built-in one, one of vLLM, or one of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.environments import AUTO
from adagrpo_ray.data.observation_text import ObservationTemplate
from adagrpo_ray.environments.tool_calls import BUILT_IN, SETTING, Parser, ToolCall, read_call
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.extensions.loading import check_call, load_function

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VLLM = "vllm:"
"""Prefix of the names of vLLM's parsers."""


def chosen_parser(name: str, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> str:
    """Return the name of the parser: `name` or, for "auto", the built-in one that reads the template's own calls.

    `kwargs` are the arguments of the chat template. Raises ConfigError if none reads them.
    """
    if name != AUTO:
        return name
    text, called, arguments = ObservationTemplate(tokenizer, kwargs).written_call()
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
    return [each if isinstance(each, ToolCall) else read_call(each) for each in returned]
