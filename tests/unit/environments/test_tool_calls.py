"""Parsers of tool calls: the formats of models, malformed calls, and the choice by the chat template."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.environments.parser_choice import chosen_parser, load_parser
from adagrpo_ray.environments.tool_calls import BUILT_IN, ToolCall, hermes, llama_json
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.given import give
from tests.support.scripted import tokenizer_of
from tests.support.templates import templated

HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'


def read(calls: list[ToolCall]) -> list[tuple[str, Any]]:
    return [(call.name, dict(call.arguments)) for call in calls if not call.error]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HERMES, [("add", {"a": 2})]),
        (f"I will add. {HERMES}", [("add", {"a": 2})]),
        (f"{HERMES}\n{HERMES}", [("add", {"a": 2})] * 2),
        ('<tool_call>{"name": "now", "arguments": "{}"}', [("now", {})]),
        ('<tool_call>{"name": "now"}</tool_call>', [("now", {})]),
        ("no call", []),
        ('{"name": "add", "arguments": {}}', []),
    ],
)
def test_hermes_calls(text: str, expected: list[tuple[str, Any]]) -> None:
    assert read(hermes(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "add", "parameters": {"a": 2}}', [("add", {"a": 2})]),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 2}}', [("add", {"a": 2})]),
        ('{"name": "f", "parameters": {}}; {"name": "g", "arguments": {}}', [("f", {}), ("g", {})]),
        ('I call {"name": "f", "parameters": {}}', []),
        ("12", []),
    ],
)
def test_llama_calls(text: str, expected: list[tuple[str, Any]]) -> None:
    assert read(llama_json(text)) == expected


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (hermes, "<tool_call>{oops}</tool_call>", "not valid JSON"),
        (hermes, "<tool_call>[1]</tool_call>", "no name"),
        (hermes, '<tool_call>{"name": 3}</tool_call>', "no name"),
        (hermes, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "no object"),
        (hermes, '<tool_call>{"name": "f", "arguments": "{"}</tool_call>', "arguments are not valid JSON"),
        (llama_json, '{"name": "f"', "not valid JSON"),
        (hermes, f"<tool_call>{'[' * 100_000}", "not valid JSON"),
    ],
)
def test_malformed_call_has_an_error_for_the_policy(parse: Any, text: str, expected: str) -> None:
    (call,) = parse(text)
    assert expected in call.error


@given(st.text())
def test_parsers_take_any_text(text: str) -> None:
    for parse in BUILT_IN.values():
        for prefix in ("", "<tool_call>", "{"):
            assert all(isinstance(call, ToolCall) for call in parse(prefix + text))


@pytest.mark.parametrize(
    ("template", "expected"),
    [("qwen2_5", "hermes"), ("qwen3", "hermes"), ("tools", "hermes"), ("llama3_1", "llama_json")],
)
def test_parser_is_chosen_by_the_calls_that_the_template_writes(template: str, expected: str) -> None:
    assert chosen_parser("auto", templated(template), {}) == expected
    assert chosen_parser("other:parser", templated(template), {}) == "other:parser"


def test_template_without_calls_needs_a_parser() -> None:
    with pytest.raises(ConfigError, match=r"^environment\.parser=auto: no built-in parser reads the tool calls"):
        chosen_parser("auto", tokenizer_of(), {})


def own(text: str) -> list[dict[str, Any]]:
    return [{"name": word, "arguments": {}} for word in text.split("!")[1:]]


def test_parser_of_the_user() -> None:
    parse = load_parser("own", give({("environment.parser", "own"): own}))
    assert read(list(parse("go!left!right"))) == [("left", {}), ("right", {})]
    wrong = load_parser("wrong", give({("environment.parser", "wrong"): lambda text: None}))
    with pytest.raises(ExtensionError, match=r"'wrong' returned None; return a list of calls"):
        wrong("x")


@pytest.mark.parametrize(
    ("name", "expected"), [("hermez", "did you mean 'hermes'"), ("no_module_xyz:f", "the module of .* is not there")]
)
def test_unknown_parser_is_refused(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"^environment\.parser: .*{expected}"):
        load_parser(name)


def test_ids_of_calls_are_those_that_strict_templates_accept() -> None:
    ids = [ToolCall("f").as_message(number)["id"] for number in (0, 12)]
    assert ids == ["call00000", "call00012"]
    assert all(len(each) == 9 and each.isalnum() for each in ids)
