"""Completions as text: special tokens that are kept, and ends of turns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.data.completion_text import CompletionText, end_of_turn, stop_ids
from tests.support.scripted import CHATML, byte_tokenizer

FORMAT = FormatSettings()
S, E = FORMAT.answer_start, FORMAT.answer_end
SPECIAL = ("<|im_start|>", "<|im_end|>", "</think>", "<think>", "<answer>", "</answer>")


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("ended", [False, True])
def test_special_token_of_marker_is_kept_and_others_removed(ended: bool) -> None:
    tokenizer = byte_tokenizer(SPECIAL, eos_token="<|im_end|>")
    text = f"<think>a</think><|im_start|>{S}42{E}" + ("<|im_end|>" if ended else "")
    ids = ids_of(tokenizer, text)
    assert CompletionText(tokenizer, FORMAT).text(ids, ended=ended) == f"a</think>{S}42{E}"
    tags = FormatSettings(answer_start="<answer>", answer_end="</answer>")
    ids = ids_of(tokenizer, "a</think><answer>42</answer><|im_end|>")
    assert CompletionText(tokenizer, tags).text(ids, ended=True) == "a</think><answer>42</answer>"


def test_text_without_special_markers_equals_tokenizer_decoding() -> None:
    tokenizer = byte_tokenizer(eos_token="<|im_end|>")
    ids = ids_of(tokenizer, f"ä </think>{S}<|im_start|>42{E}<|im_end|>")
    assert CompletionText(tokenizer, FORMAT).text(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_end_token_is_removed_even_if_not_special() -> None:
    tokenizer = byte_tokenizer(special=["<|im_start|>"], plain=["<|im_end|>"])
    ids = ids_of(tokenizer, "a<|im_end|>b<|im_end|>")
    decoder = CompletionText(tokenizer, FORMAT)
    assert decoder.text(ids, ended=True) == "a<|im_end|>b"
    assert decoder.text(ids, ended=False) == "a<|im_end|>b<|im_end|>"
    named = CompletionText(tokenizer, FormatSettings(answer_end="<|im_end|>"))
    assert named.text(ids, ended=True) == "a<|im_end|>b<|im_end|>"


def test_unknown_token_is_no_part_of_marker() -> None:
    from adagrpo_ray.toy.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(FORMAT)
    decoder = CompletionText(tokenizer, FormatSettings(answer_end="»"))
    assert decoder.text(ids_of(tokenizer, "a»")) == "a"


TOKENIZER = byte_tokenizer(SPECIAL, merged=["the", " 42"], eos_token="<|im_end|>")


@given(text=st.text(max_size=12), cuts=st.lists(st.integers(1, 3), max_size=40))
def test_stream_adds_up_to_whole_text(text: str, cuts: list[int]) -> None:
    decoder = CompletionText(TOKENIZER, FORMAT)
    ids = [*ids_of(TOKENIZER, f"{text.encode('utf-8', 'replace').decode()}</think>the é 42"), TOKENIZER.eos_token_id]
    stream, at, pieces = decoder.stream(), 0, []
    for cut in [*cuts, len(ids)]:
        new, at = ids[at : at + cut], at + cut
        pieces.append(stream.grow(new, "stop" if at >= len(ids) else None))
        if at >= len(ids):
            break
    assert "".join(pieces) == decoder.text(ids, ended=True)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
USER_ENDS = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
NO_LAST_USER = "{% if messages[-1]['role'] == 'user' %}{{ raise_exception('no') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("template", "special", "plain", "expected"),
    [
        (CHATML, ["<|im_start|>", "<|im_end|>"], [], "<|im_end|>"),
        (CHATML, ["<|im_start|>"], ["<|im_end|>"], "<|im_end|>"),
        (CHATML.replace("<|im_end|>", " </s><s>"), ["<s>", "</s>"], [], "</s>"),
        (USER_ENDS, ["<|user|>", "<|assistant|>"], [], "<|user|>"),
        (NO_LAST_USER, ["<|im_start|>", "<|im_end|>"], [], "<|im_end|>"),
        (PLAIN, ["</s>"], [], None),
        ("{{ raise_exception('no') }}", ["</s>"], [], None),
        ("{{ messages[0]['content'] }}", ["</s>"], [], None),
    ],
)
def test_end_of_turn_is_token_written_by_template(
    template: str, special: list[str], plain: list[str], expected: str | None
) -> None:
    tokenizer = byte_tokenizer(special, plain, template=template)
    found = end_of_turn(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == expected


def test_stop_ids_are_eos_and_end_of_turn() -> None:
    tokenizer = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|endoftext|>")
    assert tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)) == ["<|endoftext|>", "<|im_end|>"]
    assert stop_ids(byte_tokenizer(["</s>"], template=PLAIN)) == []
