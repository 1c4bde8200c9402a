"""The tool parsers of the installed vLLM: texts with one call, two calls, a broken call and no call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.environments.fork_server import EpisodeSetup
from adagrpo_ray.environments.host import Host, Sessions
from adagrpo_ray.environments.parser_choice import load_parser
from adagrpo_ray.environments.tool_calls import BUILT_IN, Parser, ToolCall
from adagrpo_ray.environments.tool_schema import schema_of
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.extensions.given import NOTHING
from tests.support.scripted import byte_tokenizer
from tests.support.tools import add, hermes_call

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|python_tag|>", "<tool_call>", "</tool_call>")


def tokenizer(folder: Path, *special: str) -> str:
    """The path of a tokenizer with these special tokens."""
    byte_tokenizer(special, eos_token="<|im_end|>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"), *SPECIAL)


@pytest.fixture
def parser(path: str) -> Callable[[str], Parser]:
    """A parser of vLLM by its name, for a tool that adds two numbers."""
    return lambda name: load_parser(f"vllm:{name}", tokenizer_path=path, tools=[schema_of(add)])


def json_call(a: int, b: int, key: str) -> str:
    return f'{{"name": "add", "{key}": {{"a": {a}, "b": {b}}}}}'


def xml_call(a: str, b: str) -> str:
    parameters = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in (("a", a), ("b", b)))
    return f"<tool_call>\n<function=add>\n{parameters}</function>\n</tool_call>"


HERMES = (hermes_call("add", '{"a": 1, "b": 2}'), hermes_call("add", '{"a": 3, "b": 4}'))
LLAMA = (json_call(1, 2, "parameters"), json_call(3, 4, "parameters"))
XML = (xml_call("1", "2"), xml_call("3", "4"))
ONE, TWO = ToolCall("add", {"a": 1, "b": 2}), ToolCall("add", {"a": 3, "b": 4})


@pytest.mark.parametrize(
    ("name", "calls", "between", "broken"),
    [
        ("hermes", HERMES, "\n", '<tool_call>{"name": "add", </tool_call>'),
        ("qwen3_json", HERMES, "\n", "<tool_call>add(1, 2)</tool_call>"),
        ("llama3_json", LLAMA, "; ", '{"name": "add", "parameters": '),
        ("pythonic", ("[add(a=1, b=2)]", "[add(a=1, b=2), add(a=3, b=4)]"), None, "[add(a=1, b=]"),
        ("qwen3_xml", XML, "\n", "<tool_call>\n<function=add"),
        ("qwen3_coder", XML, "\n", "<tool_call>\n</tool_call>"),
    ],
)
def test_parsers_of_vllm_read_turns(
    parser: Callable[[str], Parser], name: str, calls: tuple[str, str], between: str | None, broken: str
) -> None:
    parse = parser(name)
    first, second = calls
    assert parse(first) == [ONE]
    assert parse(second if between is None else first + between + second) == [ONE, TWO]
    assert parse(first) == [ONE], "a turn leaves no state behind"
    assert [call for call in parse(broken) if not call.error and call.arguments] == []
    for text in ("", "The sum is 3.", "<|im_start|>"):
        assert list(parse(text)) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [("hermes", "hermes", "\n".join(HERMES)), ("llama_json", "llama3_json", "; ".join(LLAMA))],
)
def test_built_in_parsers_read_the_same_calls_as_those_of_vllm(
    parser: Callable[[str], Parser], ours: str, theirs: str, text: str
) -> None:
    assert list(BUILT_IN[ours](text)) == list(parser(theirs)(text)) == [ONE, TWO]


def test_turn_at_which_a_parser_raises_is_a_malformed_call(
    parser: Callable[[str], Parser], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.tool_parsers import ToolParserManager

    parse, kind = parser("hermes"), ToolParserManager.get_tool_parser("hermes")

    def fails(*_: object) -> None:
        raise RuntimeError("a text that nobody expected")

    monkeypatch.setattr(kind, "extract_tool_calls", fails)
    (call,) = parse("any")
    assert (call.name, call.error) == ("", "the call cannot be read (a text that nobody expected)")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hermess", r"environment\.parser: vLLM has no parser 'hermess' .*; it has .*hermes, .*qwen3_xml"),
        ("openai", r"environment\.parser: vLLM's parser 'openai' reads no text of a turn; use another one"),
    ],
)
def test_parser_that_cannot_be_used_is_one_error(parser: Callable[[str], Parser], name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parser(name)


def test_parser_of_another_model_is_one_error(tmp_path: Path) -> None:
    other = tokenizer(tmp_path / "other", "<|im_start|>", "<|im_end|>")
    with pytest.raises(ConfigError, match=r"vLLM's parser 'llama3_json' does not fit the tokenizer .*<\|python_tag\|>"):
        load_parser("vllm:llama3_json", tokenizer_path=other, tools=[schema_of(add)])


@pytest.mark.long
def test_process_of_a_group_reads_calls_with_a_parser_of_vllm(path: str) -> None:
    """Its copies have vLLM loaded, within the memory limit that holds by default."""
    settings = EnvironmentSettings(tools=("adagrpo_ray.environments.calculator:calculator",))

    async def work() -> list[str]:
        host = Host(EpisodeSetup(settings, NOTHING, "vllm:hermes", path))
        try:
            async with host.sessions(2) as sessions:
                return [await asked(sessions, number) for number in range(2)]
        finally:
            host.close()

    async def asked(sessions: Sessions, number: int) -> str:
        await sessions.call("begin", number, row={}, seed=0)
        text = hermes_call("calculator", f'{{"expression": "{number}+40"}}')
        found = await sessions.call("step", number, text=text, raw=text)
        return str(found["messages"][0]["content"])

    assert asyncio.run(work()) == ["40", "41"]
