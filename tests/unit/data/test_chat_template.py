"""`data.chat_template` (the model's own, a file, or none): tokens of prompts, and everything that uses the template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.cards.card import Facts, adapter_card
from adagrpo_ray.config import Config
from adagrpo_ray.config.data import DataSettings
from adagrpo_ray.config.fixed import check_fixed, fixed_settings
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.data.completion_text import stop_ids
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.data.prompts import PromptSets, load_prompts
from adagrpo_ray.data.template import text_head
from adagrpo_ray.data.template_choice import chosen_template, use_template
from adagrpo_ray.errors import ChatError, CheckpointError, ConfigError, DataError, ModelError
from adagrpo_ray.evaluation.settings import prompt_settings
from adagrpo_ray.model.identity import ModelIdentity
from adagrpo_ray.model.pretrained import load_tokenizer
from adagrpo_ray.rollout.endings import Endings
from adagrpo_ray.runs import summarize
from adagrpo_ray.viewer.conversation import Message, render
from tests.support.builders import make_completion
from tests.support.histories import BEFORE, STEP
from tests.support.scripted import ASKS, BOS, CHATML, EOS, tokenizer_of

WRITES_BOS = "{{ bos_token }}" + CHATML
SYSTEM = "Put it between {answer_start} and {answer_end}."


def config_of(path: Path, rows: list[Any], **data: Any) -> Config:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"source": str(path), "eval_prompts": 0} | data
    return Config.model_validate({"data": settings, "algorithm": {"prompts_per_step": 1}})


def loaded(path: Path, tokenizer: Any, prompt: Any, **data: Any) -> PromptSets:
    columns = {"tools": data.pop("tools")} if "tools" in data else {}
    config = config_of(path, [{"prompt": prompt, "solution": "7", **columns}], **data)
    use_template(tokenizer, chosen_template(config.data))
    return load_prompts(config, tokenizer)


def tokens(path: Path, tokenizer: Any, prompt: Any, **data: Any) -> list[int]:
    (found,) = loaded(path, tokenizer, prompt, **data).train
    return list(found.token_ids)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


# Tokens of prompts


@pytest.mark.parametrize("adds", ["", "bos", "both"])
@pytest.mark.parametrize("template", [CHATML, WRITES_BOS])
def test_prompt_tokens_equal_those_of_transformers(path: Path, adds: str, template: str) -> None:
    """A template that writes the BOS gets no second one, with any rule of the tokenizer for the start of a text."""
    tokenizer = tokenizer_of(adds, template)
    messages = [{"role": "user", "content": "1 + 2?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokens(path, tokenizer, "1 + 2?") == expected
    assert expected.count(tokenizer.bos_token_id) == (template == WRITES_BOS)


@pytest.mark.parametrize(("adds", "head"), [("", []), ("bos", [BOS]), ("both", [BOS])])
def test_plain_text_gets_tokens_of_text_start_only(path: Path, adds: str, head: list[str]) -> None:
    tokenizer = tokenizer_of(adds, None)
    text = "Q: 1 + 2?\nA:"
    expected = [*tokenizer.convert_tokens_to_ids(head), *tokenizer.encode(text, add_special_tokens=False)]
    assert tokens(path, tokenizer, text, chat_template="none") == expected
    assert tokenizer.decode(expected) == "".join(head) + text


def test_plain_text_with_bos_gets_no_second_bos(path: Path) -> None:
    """The BOS is in the settings: a text of the data with it would be dropped, as with any control token."""
    tokenizer = tokenizer_of("bos", None)
    found = tokens(path, tokenizer, "1?", chat_template="none", system_prompt=BOS)
    assert found.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(found) == f"{BOS}\n\n1?"


def test_text_head_has_bos_only_if_tokenizer_adds_it() -> None:
    """A tokenizer may have a BOS and not add it."""
    assert text_head(tokenizer_of()) == []
    assert text_head(tokenizer_of("both")) == [tokenizer_of().convert_tokens_to_ids(BOS)]


def test_template_without_bos_gives_a_note(path: Path) -> None:
    (note,) = loaded(path, tokenizer_of("bos"), "1?").notes
    assert note.startswith(f"the chat template does not write {BOS!r}, with which the tokenizer begins plain texts")
    assert loaded(path, tokenizer_of("bos", WRITES_BOS), "1?").notes == ()
    assert loaded(path, tokenizer_of(""), "1?").notes == ()
    assert loaded(path, tokenizer_of("bos", None), "1?", chat_template="none").notes == ()


def test_file_replaces_template_of_model(path: Path, template_file: Path) -> None:
    for own in (CHATML, None):
        tokenizer = tokenizer_of("", own)
        found = tokens(path, tokenizer, "1?", chat_template=str(template_file), system_prompt="short")
        assert tokenizer.decode(found) == "system: short\nuser: 1?\nanswer:"


# Plain text


BLANK = {"role": "system", "content": " "}


@pytest.mark.parametrize(
    "prompt",
    [
        "1 + 2?",
        [{"role": "user", "content": "1 + 2?"}],
        [{"from": "human", "value": "1 + 2?"}],
        {"messages": [BLANK, {"role": "user", "content": "1 + 2?"}]},
    ],
)
@pytest.mark.parametrize(("system", "before"), [(None, ""), ("", ""), (SYSTEM, "Put it between <a> and </a>.\n\n")])
def test_plain_prompt_is_system_text_and_message(path: Path, prompt: Any, system: str | None, before: str) -> None:
    tokenizer = tokenizer_of("", None)
    markers = {"answer_start": "<a>", "answer_end": "</a>"}
    found = tokens(path, tokenizer, prompt, chat_template="none", system_prompt=system, format=markers)
    assert tokenizer.decode(found) == f"{before}1 + 2?"


USER, SAID = {"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}
SCHEMA = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("prompt", "tools", "expected"),
    [
        ([{"role": "system", "content": "short"}, USER], None, "messages of the roles system, user"),
        ([USER, SAID, USER], None, "messages of the roles user, assistant, user"),
        ([USER, SAID], None, "messages of the roles user, assistant"),
        ([USER], [SCHEMA], "tools"),
        ([{**USER, "name": "Ann"}], None, "a message with name"),
    ],
)
def test_unsupported_content_in_plain_text_is_refused_with_row(
    path: Path, prompt: Any, tools: Any, expected: str
) -> None:
    more = {} if tools is None else {"tools": tools}
    refused = (
        rf"^data\.chat_template=none takes prompts of one text, and this one has {expected}; give data with one text"
    )
    with pytest.raises(DataError, match=rf"{refused} per prompt, or a Jinja file .* \(row 1 of data\.source="):
        loaded(path, tokenizer_of("", None), prompt, chat_template="none", **more)


def test_plain_text_with_control_tokens_is_dropped(path: Path) -> None:
    with pytest.raises(DataError, match="1 with control tokens of the model"):
        loaded(path, tokenizer_of("", None), f"1?{EOS}", chat_template="none")


def test_plain_generation_ends_at_eos_only() -> None:
    tokenizer = tokenizer_of()
    eos, turn = tokenizer.convert_tokens_to_ids([EOS, "<|im_end|>"])
    assert set(stop_ids(tokenizer)) == {eos, turn}
    use_template(tokenizer, "")
    assert stop_ids(tokenizer) == [eos]
    use_template(tokenizer, None)
    assert stop_ids(tokenizer) == [eos]
    use_template(tokenizer, CHATML.replace("<|im_end|>", BOS))
    assert set(stop_ids(tokenizer)) == {eos, tokenizer.bos_token_id}


def test_notice_of_endless_completions_differs_for_plain_text() -> None:
    endings = Endings(7, plain=True)
    endings.count([replace(make_completion(), finish_reason="length")])
    (notice,) = endings.notices()
    assert "With data.chat_template=none generation stops at the tokenizer's eos_token" in notice
    assert "chat template writes" not in notice


def test_template_arguments_are_refused_without_template() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.template_kwargs=.* are arguments of a chat template, and data\.chat_t"
    ):
        Config.load(None, ["data.chat_template=none", "data.template_kwargs.enable_thinking=false"])


# Which template


def test_error_without_template_names_both_remedies(tmp_path: Path, template_file: Path) -> None:
    tokenizer_of("bos", None).save_pretrained(tmp_path / "base")
    model = {"path": str(tmp_path / "base")}
    with pytest.raises(
        ModelError, match=r"has no chat template; give a Jinja file as data\.chat_template, or set it to none"
    ):
        load_tokenizer(model["path"], ModelSettings(**model), DataSettings())
    for choice, expected in (("none", None), (str(template_file), ASKS)):
        data = DataSettings(chat_template=choice)
        assert load_tokenizer(model["path"], ModelSettings(**model), data).chat_template == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            None,
            r"cannot be read \(No such file or directory\); give a Jinja file in UTF-8, none for prompts of plain text",
        ),
        (b"", "is empty; give a chat template"),
        (b" \n", "is empty"),
        (b"\xff\xfe", r"cannot be read \(.*utf-8.*\); give a Jinja file in UTF-8"),
        (
            b"{% for m in messages %}{{ m.content }}",
            r"is no Jinja template \(Unexpected end of template.*line 1\); correct",
        ),
        (b"a\n{{ b c }}", r"is no Jinja template \(.*, line 2\)"),
        (b"x" * (2**20 + 1), "is too long"),
    ],
)
def test_file_without_valid_template_is_refused(tmp_path: Path, content: bytes | None, expected: str) -> None:
    name = tmp_path / "x.jinja"
    if content is not None:
        name.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^data\.chat_template='{name}' {expected}") as caught:
        chosen_template(Config.model_validate({"data": {"chat_template": str(name)}}).data)
    assert "\n" not in str(caught.value)


def test_folder_as_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        chosen_template(Config.model_validate({"data": {"chat_template": str(tmp_path)}}).data)


def test_tags_of_transformers_are_accepted(tmp_path: Path, path: Path) -> None:
    name = tmp_path / "x.jinja"
    name.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    tokenizer = tokenizer_of()
    assert tokenizer.decode(tokens(path, tokenizer, "1?", chat_template=str(name))) == "1?"


# Uses of the template


def test_run_resumes_with_same_template_at_another_path(path: Path, template_file: Path, tmp_path: Path) -> None:
    moved = Path(tmp_path / "moved.jinja")
    moved.write_text(template_file.read_text())
    before = config_of(path, [{"prompt": "1?", "solution": "7"}], chat_template=str(template_file))
    after = before.model_copy(update={"data": before.data.model_copy(update={"chat_template": str(moved)})})
    check_fixed(after, fixed_settings(before))

    def order(choice: str | None) -> PromptOrder:
        sets = loaded(path, tokenizer_of(), "1?", chat_template=choice)
        return PromptOrder(sets.train, 0, True, sets.template)

    state = order(str(template_file)).state_dict()
    order(str(moved)).load_state_dict(state)
    moved.write_text(ASKS.replace("answer", "reply"))
    for other in (None, "none", str(moved)):
        with pytest.raises(
            CheckpointError, match=r"^model\.path or data\.chat_template: the chat template is not the one"
        ):
            order(other).load_state_dict(state)


def test_results_of_other_templates_are_not_mixed(path: Path, template_file: Path) -> None:
    choices = (None, "none", str(template_file))
    settings = [prompt_settings(loaded(path, tokenizer_of(), "1?", chat_template=choice)) for choice in choices]
    assert len({json.dumps(each) for each in settings}) == 3


@pytest.mark.parametrize(("adds", "thinking", "end"), [("", True, ""), ("bos", True, ""), ("bos", False, "</think>")])
def test_plain_text_chat_sends_one_message(adds: str, thinking: bool, end: str) -> None:
    tokenizer = tokenizer_of(adds, None)
    first = (Message(role="user", text="1?"),)
    found = render(tokenizer, first, "Be short.", thinking, "</think>", plain=True)
    assert tokenizer.decode(found.token_ids) == f"{BOS if adds else ''}Be short.\n\n1?{end}"
    assert not found.thinks
    further = (*first, Message(role="assistant", text="2"), Message(role="user", text="3?"))
    with pytest.raises(ChatError, match="plain text, which has no turns; clear the chat"):
        render(tokenizer, further, "", True, "</think>", plain=True)


def card(template: str | None = None, **data: Any) -> str:
    config = Config.model_validate({"data": {"source": "x.jsonl", **data}})
    summary = summarize([STEP], BEFORE, None, name="r", folder="r", adapter="r")
    return adapter_card(Facts(config, ModelIdentity("Qwen/Qwen3-1.7B", True), summary, template=template))


def code_of(text: str) -> list[str]:
    return [block.partition("\n```")[0] for block in text.split("```python\n")[1:]]


def test_card_shows_how_prompts_were_rendered(template_file: Path) -> None:
    own = card()
    assert "with the chat template of its base model" in own
    plain = card(chat_template="none", system_prompt="Be short.")
    assert "on prompts of plain text, without a chat template, after this text and a blank line:" in plain
    peft, vllm = code_of(plain)
    assert r'text = "Be short.\n\n..."' in peft
    assert 'prompt = tokenizer(text, return_tensors="pt")' in peft
    assert "llm.generate(text, sampling, lora_request=adapter)" in vllm
    assert "apply_chat_template" not in plain.partition("<details>")[0]
    filed = card(ASKS, chat_template=str(template_file))
    assert "with the chat template `chat_template.jinja` in the folder of its adapter" in filed
    assert f"```jinja\n{ASKS}\n```" in filed
    peft, vllm = code_of(filed)
    assert 'tokenizer.chat_template = open("path/to/this/adapter/chat_template.jinja").read()' in peft
    assert "chat_template=tokenizer.chat_template)" in vllm
    assert str(template_file.parent) not in filed.partition("<details>")[0]
    for text in (own, plain, filed):
        for block in code_of(text):
            compile(block, "card", "exec")
