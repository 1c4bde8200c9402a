"""The tool parsers of vLLM (0.32), which read the text of a whole turn without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo_ray.environments.tool_calls import SETTING, Parser, ToolCall, read_call
from adagrpo_ray.errors import ConfigError, first_line


def vllm_parser(name: str, tokenizer_path: str, tools: Sequence[Mapping[str, Any]]) -> Parser:
    """Return vLLM's parser called `name`, as its option --tool-call-parser names it.

    `tokenizer_path` is that of the model, whose vocabulary the parser reads. A parser has a state, so each turn gets a
    new one. A turn at which it raises is a malformed call, since the policy may write any text. Raises ConfigError if
    vLLM has no such parser, if it does not fit the tokenizer, or if it reads no texts (`openai`, whose calls vLLM's
    server reads from tokens).
    """
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
    from vllm.tool_parsers import ToolParserManager

    try:
        kind = ToolParserManager.get_tool_parser(name)
    except Exception as error:
        known = ", ".join(ToolParserManager.list_registered())
        raise ConfigError(f"{SETTING}: vLLM has no parser {name!r} ({first_line(error)}); it has {known}") from None
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    listed = [ChatCompletionToolsParam.model_validate(dict(tool)) for tool in tools]
    request = ChatCompletionRequest(
        messages=[{"role": "user", "content": ""}], model="", tools=[tool.model_dump() for tool in listed] or None
    )

    def extract(text: str) -> Sequence[Any]:
        return list(kind(tokenizer, listed).extract_tool_calls(text, request).tool_calls or ())

    try:
        extract("")
    except NotImplementedError:
        raise ConfigError(
            f"{SETTING}: vLLM's parser {name!r} reads no text of a turn; use another one, or your own as "
            "'module:function'"
        ) from None
    except Exception as error:
        raise ConfigError(
            f"{SETTING}: vLLM's parser {name!r} does not fit the tokenizer of model.path ({first_line(error)}); use "
            "the one of the model"
        ) from None

    def parse(text: str) -> list[ToolCall]:
        try:
            functions = [call.function for call in extract(text)]
        except Exception as error:
            return [ToolCall("", error=f"the call cannot be read ({first_line(error)})")]
        return [read_call({"name": each.name, "arguments": each.arguments or "{}"}) for each in functions]

    return parse
