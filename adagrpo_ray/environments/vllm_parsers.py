"""The tool parsers of vLLM, which read the text of a whole turn without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo_ray.environments.tool_calls import SETTING, Parser, ToolCall, read_call
from adagrpo_ray.errors import ConfigError, first_line


def vllm_parser(name: str, tokenizer_path: str, tools: Sequence[Mapping[str, Any]]) -> Parser:
    """Return vLLM's parser called `name`, as its option --tool-call-parser names it.

    `tokenizer_path` is that of the model, whose vocabulary the parser reads. A parser has a state, so each turn gets a
    new one. Raises ConfigError if vLLM has no such parser, or if it does not fit the tokenizer.
    """
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
    from vllm.tool_parsers import ToolParserManager

    try:
        kind = ToolParserManager.get_tool_parser(name)
    except Exception as error:
        known = ", ".join(sorted({*ToolParserManager.tool_parsers, *ToolParserManager.lazy_parsers}))
        raise ConfigError(f"{SETTING}: vLLM has no parser {name!r} ({first_line(error)}); it has {known}") from None
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    listed = [ChatCompletionToolsParam.model_validate(dict(tool)) for tool in tools]
    request = ChatCompletionRequest(
        messages=[{"role": "user", "content": ""}], model="", tools=[tool.model_dump() for tool in listed] or None
    )
    try:
        kind(tokenizer, listed)
    except Exception as error:
        raise ConfigError(
            f"{SETTING}: vLLM's parser {name!r} does not fit the tokenizer of model.path ({first_line(error)}); use "
            "the one of the model"
        ) from None

    def parse(text: str) -> list[ToolCall]:
        found = kind(tokenizer, listed).extract_tool_calls(text, request)
        functions = [call.function for call in found.tool_calls or ()]
        return [read_call({"name": each.name, "arguments": each.arguments or "{}"}) for each in functions]

    return parse
