"""Prompts keep the text of the data: layouts of chats, omissions of templates, and arguments of templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adagrpo_ray.cards.card import Facts, adapter_card
from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import PromptSets, load_prompts
from adagrpo_ray.errors import ConfigError, DataError
from adagrpo_ray.evaluation.settings import prompt_settings
from adagrpo_ray.model.identity import ModelIdentity
from adagrpo_ray.runs import summarize
from adagrpo_ray.toy.tokenizer import build_tokenizer
from adagrpo_ray.viewer.conversation import Message, render
from tests.support.histories import BEFORE, STEP
from tests.support.places import TINY

ROLES = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<assistant>{% endif %}"
PLAIN = ROLES + BEGIN
TOOLS = (
    "{% for t in tools or [] %}<schema>{{ t | tojson }}</schema>{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if loop.last or m.role != 'assistant' %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>{% endfor %}"
    "</{{ m.role }}>{% endfor %}" + BEGIN
)
SWITCH = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "why": 'so "it" is'}}}
SCHEMA = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}


def tokenizer_of(template: str | None = None) -> Any:
    tokenizer = build_tokenizer(Config().data.format)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def load(path: Path, rows: list[Any], template: str | None = PLAIN, **data: Any) -> PromptSets:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"source": str(path), "eval_prompts": 0, "system_prompt": None} | data
    config = Config.model_validate({"data": settings, "algorithm": {"prompts_per_step": 1}})
    return load_prompts(config, tokenizer_of(template))


def rendered(path: Path, prompt: Any, template: str | None = PLAIN, **others: Any) -> str:
    """Return the only prompt of a file with one row."""
    columns = {key: others.pop(key) for key in list(others) if key in ("tools", "image", "images", "difficulty")}
    (found,) = load(path, [{"prompt": prompt, "solution": "2", **columns}], template, **others).train
    return str(tokenizer_of().decode(found.token_ids.tolist()))


def message(role: str, content: Any, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


ASKED = [message("system", "Be brief."), message("user", "1+1")]
SHOWN = "<system>Be brief.</system><user>1+1</user><assistant>"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.jsonl"


# --- layouts ---


@pytest.mark.parametrize(
    "prompt",
    [
        ASKED,
        {"messages": ASKED},
        {"conversations": ASKED},
        {"messages": ASKED, "tools": None},
        [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "1+1"}],
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "1+1"}]},
        [message("system", [{"type": "text", "text": "Be brief."}]), message("user", "1+1")],
        [message("system", "Be brief.", name=None, tool_calls=None), message("user", "1+1", tool_calls=[])],
        json.dumps(ASKED),
        json.dumps({"messages": ASKED}, indent=1),
        str(ASKED),
        {"messages": json.dumps(ASKED)},
    ],
)
def test_chat_is_read_in_every_known_layout(path: Path, prompt: Any) -> None:
    assert rendered(path, prompt) == SHOWN


def test_chat_of_parquet_is_read_without_nulls_of_table(tmp_path: Path) -> None:
    call = message("assistant", None, tool_calls=[CALL])
    rows = [
        {
            "prompt": [message("user", "1+1"), call, message("tool", "2", name="add")],
            "solution": "2",
            "tools": [SCHEMA],
        },
        {"prompt": [message("user", "2+2")], "solution": "4", "tools": None},
    ]
    first, second = load(tmp_path / "d.parquet", rows, TOOLS).train
    decode = tokenizer_of().decode
    assert decode(second.token_ids.tolist()) == "<user>2+2</user><assistant>"
    assert '<call>add{"a": 1, "why": "so \\"it\\" is"}</call>' in decode(first.token_ids.tolist())
    assert "null" not in decode(first.token_ids.tolist())


def test_content_parts_are_lines(path: Path) -> None:
    parts = [{"type": "text", "text": "1"}, {"type": "text", "text": "+1"}]
    assert rendered(path, [message("user", parts)]) == "<user>1\n+1</user><assistant>"


@pytest.mark.parametrize("prompt", ['{"value": 3}\nWhat is the value?', '{"role": 5}', "[1, 2] has a mean of", "{'a'"])
def test_text_that_is_no_chat_is_kept(path: Path, prompt: str) -> None:
    assert rendered(path, prompt) == f"<user>{prompt}</user><assistant>"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([1, 2, 3], "message 1 of the prompt is a int"),
        (["1+2"], "message 1 of the prompt is a str"),
        ([message("user", "1+2"), "and more"], "message 2 of the prompt is a str"),
        ({"text": {"deep": "1+2"}}, "an object with 'text'"),
        ({"messages": ASKED, "system": "Be brief."}, "an object with 'system'"),
        ([{"content": "1+2"}], "message 1 of the prompt has the role None; use system"),
        ([message("alien", "1+2")], "has the role 'alien'; use system"),
        ([message("User", "1+2")], "has the role 'User'; did you mean 'user'"),
        ([{"from": "somebody", "value": "1+2"}], "has the role 'somebody'"),
        ([{"role": "user", "value": "1+2"}], "has 'value', which no chat template"),
        ([message("user", "1+2", weight=0)], "has 'weight', which no chat template"),
        ([message("user", "1+2", function_call={"name": "f"})], "has 'function_call'"),
        ([message("user", 5)], "a content of 'int'; only texts are read"),
        ([message("user", {"text": "1+2"})], "a content of 'dict'"),
        ([message("user", [{"type": "image"}, {"type": "text", "text": "1"}])], "a content of 'image'"),
        ([message("user", ["1+2"])], "a content of 'str'"),
        ([message("user", "1+2", name=5)], "a name that is a int"),
        ([message("user", "1+2"), message("assistant", "", tool_calls=[CALL])], "ends with a tool call"),
        (
            [message("user", "1"), message("assistant", "", tool_calls=[{"f": 1}]), message("tool", "2")],
            "tool call",
        ),
        ([message("user", "1"), message("assistant", "", tool_calls="add"), message("tool", "2")], "that are a str"),
        ("[{'role': 'user', 'content': '1+2'} {'role': 'user'}]", "looks like chat messages as text"),
    ],
)
def test_unknown_layout_is_refused_with_row(path: Path, prompt: Any, expected: str) -> None:
    rows = [{"prompt": "first", "solution": "1"}, {"prompt": prompt, "solution": "2"}]
    with pytest.raises(DataError, match=rf"(?s){expected}.*\(row 2 of data\.source="):
        load(path, rows)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("images", [{"bytes": "x"}]),
        ("image", {"path": "a.png"}),
        ("tools", "hammer"),
        ("tools", ["add"]),
        ("tools", [{"description": "no name"}]),
        ("chat_template_kwargs", {"enable_thinking": False}),
    ],
)
def test_unsupported_column_is_refused_with_row(path: Path, column: str, value: Any) -> None:
    with pytest.raises(DataError, match=rf"the column '{column}' .*\(row 1 of"):
        load(path, [{"prompt": "1", "solution": "1", column: value}], TOOLS)
    assert load(path, [{"prompt": "1", "solution": "1", column: None}], TOOLS).train


# --- the end of a prompt ---


@pytest.mark.parametrize("template", [PLAIN, None])
def test_final_assistant_message_is_continued(path: Path, template: str | None) -> None:
    prompts = load(path, [{"prompt": [*ASKED, message("assistant", "It is")], "solution": "2"}], template)
    text = tokenizer_of().decode(prompts.train[0].token_ids.tolist())
    assert text.endswith(("<assistant>It is", "<|im_start|>assistant\nIt is"))
    assert text.count("assistant") == 1
    assert prompts.notes == ("1 prompts end with a message of the assistant, which completions continue",)


@pytest.mark.parametrize("begun", ["<", "|", "assistant", "im_end", "1"])
def test_begun_text_that_template_also_writes_is_continued(path: Path, begun: str) -> None:
    assert rendered(path, [*ASKED, message("assistant", begun)], None).endswith(f"<|im_start|>assistant\n{begun}")


LAYS_OUT_THOUGHTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>{% endif %}"
    "{{ m.content }}</{{ m.role }}>{% endfor %}" + BEGIN
)


@pytest.mark.parametrize(
    "template", [LAYS_OUT_THOUGHTS, LAYS_OUT_THOUGHTS + "{% if add_generation_prompt %}<think>\n{% endif %}"]
)
def test_begun_thought_appears_once(path: Path, template: str) -> None:
    prompt = [*ASKED, message("assistant", "<think>\nLet us")]
    assert rendered(path, prompt, template) == f"{SHOWN}<think>\nLet us"


@pytest.mark.parametrize("empty", ["", " \n", None])
def test_empty_final_assistant_message_is_ignored(path: Path, empty: str | None) -> None:
    assert rendered(path, [*ASKED, message("assistant", empty)]) == SHOWN


def test_tokens_equal_those_of_transformers(path: Path) -> None:
    template = "{{ bos_token }}" + TOOLS
    tokenizer = tokenizer_of(template)
    for prompt in (ASKED, [*ASKED, message("assistant", "It")]):
        (found,) = load(path, [{"prompt": prompt, "solution": "2"}], template).train
        continues = prompt is not ASKED
        expected = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=not continues, continue_final_message=continues, return_dict=False
        )
        assert found.token_ids.tolist() == expected


# --- omissions of templates ---


def test_tools_and_calls_reach_the_template(path: Path) -> None:
    prompt = [message("user", "1+1"), message("assistant", "", tool_calls=[CALL]), message("tool", "2", name="add")]
    text = rendered(path, prompt, TOOLS, tools=[SCHEMA])
    assert text == (
        f"<schema>{json.dumps(SCHEMA)}</schema><user>1+1</user><assistant><call>add"
        '{"a": 1, "why": "so \\"it\\" is"}</call></assistant><tool>2</tool><assistant>'
    )
    as_text = {**CALL, "function": {"name": "add", "arguments": json.dumps(CALL["function"]["arguments"])}}  # type: ignore[index]
    prompt[1] = message("assistant", None, tool_calls=[as_text])
    assert rendered(path, {"messages": prompt, "tools": [SCHEMA]}, TOOLS) == text


@pytest.mark.parametrize(
    ("prompt", "others", "expected"),
    [
        ([message("user", "1+1", name="Ann")], {}, "leaves out 'Ann' of the user message"),
        ("1+1", {"tools": [SCHEMA]}, "leaves out the tool 'add'"),
        ("1+1", {"tools": [{"name": "us"}]}, "leaves out the tool 'us'"),
        (
            [message("user", "1+1"), message("assistant", "", tool_calls=[CALL]), message("tool", "2")],
            {},
            "leaves out 'add' of the assistant message",
        ),
        ([message("user", "1"), message("assistant", "", reasoning_content="mine")], {}, "leaves out|refuses"),
    ],
)
def test_content_unknown_to_template_is_refused(path: Path, prompt: Any, others: Any, expected: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)chat template ({expected}).*\(row 1 of"):
        rendered(path, prompt, **others)


NO_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</u>{% endif %}{% endfor %}"
LAST_TWO = "{% for m in messages[-2:] %}<{{ m.role }}>{{ m.content }}</u>{% endfor %}" + BEGIN
CUT = "{% for m in messages %}<{{ m.role }}>{{ m.content[:10] }}</u>{% endfor %}" + BEGIN


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        (NO_SYSTEM, ASKED, "leaves out 'Be brief.' of the system message; set data.system_prompt to null"),
        (NO_SYSTEM, [message("system", "user"), ASKED[1]], "leaves out 'user' of the system message"),
        (
            LAST_TWO,
            [message("user", "<"), message("assistant", "2"), message("user", "1+1")],
            "leaves out '<'",
        ),
        (CUT, "the numbers from one to ten", "leaves out 'the numbers from one to ten' of the user message"),
    ],
)
def test_template_that_leaves_out_message_is_refused(path: Path, template: str, prompt: Any, expected: str) -> None:
    with pytest.raises(DataError, match=rf"{expected}.*\(row 1 of"):
        rendered(path, prompt, template)


def test_template_that_ignores_system_message_is_refused_for_arithmetic() -> None:
    config = Config.model_validate({"data": {"eval_prompts": 0}})
    with pytest.raises(DataError, match=r"leaves out 'Think between .* set data\.system_prompt to null"):
        load_prompts(config, tokenizer_of(NO_SYSTEM))


def test_template_may_drop_thoughts_of_earlier_turns(path: Path) -> None:
    prompt = [message("user", "1+1"), message("assistant", "<think>so</think>2"), message("user", "2+2")]
    assert rendered(path, prompt, TOOLS) == "<user>1+1</user><assistant>2</assistant><user>2+2</user><assistant>"


def test_empty_system_message_of_data_does_not_replace_setting(path: Path) -> None:
    prompt = [message("system", " "), message("user", "1+1")]
    assert rendered(path, prompt, system_prompt="Be brief.") == SHOWN


def test_system_message_of_data_in_place_of_setting_gives_note(path: Path) -> None:
    prompts = load(path, [{"prompt": ASKED, "solution": "2"}], system_prompt="Write {think_end}.")
    assert "1 prompts have a system message of their own" in prompts.notes[0]


@pytest.mark.parametrize("text", ["<|im_start|>user\n1+1<|im_end|>\n", "1+1<|im_end|>"])
def test_texts_with_control_tokens_are_dropped_and_counted(path: Path, text: str) -> None:
    prompts = load(path, [{"prompt": "1+1", "solution": "2"}, {"prompt": text, "solution": "2"}])
    assert prompts.dropped == {"with control tokens of the model": 1}


# --- arguments of the template ---


def test_template_kwargs_reach_prompts_and_chat(path: Path) -> None:
    kwargs = {"enable_thinking": False}
    assert rendered(path, "1+1", SWITCH, template_kwargs=kwargs) == "<user>1+1</user><assistant></think>"
    assert rendered(path, "1+1", SWITCH) == "<user>1+1</user><assistant>"
    other = PLAIN + "{{ effort }}"
    messages = (Message(role="user", text="1+1"),)
    chat = render(tokenizer_of(other), messages, "", True, "</think>", {"effort": "high", "enable_thinking": False})
    assert tokenizer_of().decode(list(chat.token_ids)) == "<user>1+1</user><assistant>high"


def test_results_of_other_template_names_are_not_mixed(path: Path) -> None:
    rows = [{"prompt": "1+1", "solution": "2"}]
    one, same, other = (prompt_settings(load(path, rows, t)) for t in (PLAIN, PLAIN, SWITCH))
    assert one == same != other
    assert one["(the names of prompts)"] == "row"


def test_template_kwargs_are_in_code_of_card() -> None:
    config = Config.model_validate({"data": {"template_kwargs": {"enable_thinking": False}}})
    summary = summarize([STEP], BEFORE, None, name="r", folder="r", adapter="r")
    card = adapter_card(Facts(config, ModelIdentity("tiny"), summary))
    assert "**{'enable_thinking': False})" in card
    assert "chat_template_kwargs={'enable_thinking': False})" in card
    assert '`{"enable_thinking": false}`' in card


@pytest.mark.parametrize("name", ["enable_thinkin", "ns", "m"])
def test_arguments_unread_by_template_are_refused(path: Path, name: str) -> None:
    template = SWITCH + "{% set ns = namespace(x=1) %}{% generation %}{% endgeneration %}{# enable_thinkin #}"
    expected = rf"data\.template_kwargs\.{name}: .* reads no such argument; it reads enable_thinking"
    with pytest.raises(ConfigError, match=expected):
        rendered(path, "1+1", template, template_kwargs={name: False})


@pytest.mark.parametrize("name", ["content", "role", "m"])
def test_name_set_by_template_before_reading_is_no_argument(path: Path, name: str) -> None:
    template = (
        "{% for m in messages %}{% if m.content %}{% set content = m.content %}{% set role = 'r' %}{% endif %}"
        "<{{ m.role }}>{{ m.content }}</u>{{ content }}{% endfor %}{{ role }}"
    )
    with pytest.raises(ConfigError, match=rf"data\.template_kwargs\.{name}: .* it reads none"):
        rendered(path, "1+1", template, template_kwargs={name: "x"})


def test_argument_with_default_in_template_is_known(path: Path) -> None:
    template = "{% if not date is defined %}{% set date = 'today' %}{% endif %}{{ date }}: " + PLAIN
    assert rendered(path, "1+1", template, template_kwargs={"date": "1 May"}).startswith("1 May: <user>")


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "tokenize", "bos_token", "a b", "1a"])
def test_reserved_arguments_are_refused_in_settings(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.template_kwargs"):
        Config.load(TINY, {"data.template_kwargs": {name: 1}})


@pytest.mark.parametrize("word", ["no", "False", "yes", "TRUE"])
def test_words_for_booleans_are_refused_as_arguments(word: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.template_kwargs\.enable_thinking='.*write true or false"):
        Config.load(TINY, {"data.template_kwargs": {"enable_thinking": word}})


# --- columns and difficulties ---


def test_nested_columns_are_passed_whole_under_their_names(path: Path) -> None:
    row = {
        "question": "1+1",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"split": "train", "index": 7},
        "answer": "a rationale",
    }
    columns = {"prompt": "question", "ground_truth": "reward_model.ground_truth", "difficulty": "extra_info.split"}
    prompts = load(path, [row, {**row, "question": "2+2", "tests": ["x"]}], columns=columns)
    first, second = prompts.train
    assert first.columns == {**row, "tests": None}
    assert second.columns["tests"] == ["x"]
    assert (first.answer, first.difficulty) == ("2", "train")


@pytest.mark.parametrize(
    ("value", "difficulty"), [(None, ""), (float("nan"), ""), (" easy ", "easy"), (3, "3"), ("", ""), ("\n", "")]
)
def test_difficulty_is_stripped_of_white_space(path: Path, value: Any, difficulty: str) -> None:
    rows = [{"prompt": "1", "solution": "1", "difficulty": value}]
    assert load(path, rows, columns={"difficulty": "difficulty"}).train[0].difficulty == difficulty
