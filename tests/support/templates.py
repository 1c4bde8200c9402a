"""Chat templates of real models, from the files of the package trl, and byte-level tokenizers with their tokens."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tests.support.places import ROOT
from tests.support.scripted import CHATML, byte_tokenizer

CONTROL: dict[str, tuple[str, ...]] = {
    "qwen2_5": ("<|im_start|>", "<|im_end|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "llama3_1": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    "gemma3": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "tools": ("<|im_start|>", "<|im_end|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
}
"""Control tokens by the name of a template; `tools` is launch/configs/tools.jinja."""
ENDS = {"llama3_1": "<|eot_id|>", "gemma3": "<end_of_turn>"}
"""The token that ends a turn, if it is not <|im_end|>."""


def template_text(name: str) -> str:
    """The text of a template; those of trl are read without an import, which takes seconds."""
    if name == "chatml":
        return CHATML
    if name == "tools":
        return (ROOT / "launch" / "configs" / "tools.jinja").read_text()
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text()


def templated(name: str) -> Any:
    """A byte-level tokenizer with the template and its control tokens."""
    control = CONTROL[name]
    first = {"bos_token": control[0]} if control[0] in ("<|begin_of_text|>", "<bos>") else {}
    return byte_tokenizer(control, template=template_text(name), eos_token=ENDS.get(name, "<|im_end|>"), **first)
