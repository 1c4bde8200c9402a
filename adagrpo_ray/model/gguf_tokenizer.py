"""The tokenizer of a GGUF file, with rules of its metadata that Transformers ignores."""

from __future__ import annotations

from typing import Any

from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.model.gguf_header import Header

KEY = "tokenizer.ggml."
DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Pre-tokenizers that split digits and otherwise cut as GPT-2 does, by their names in llama.cpp's llama-vocab.cpp.

Transformers cuts as GPT-2 for all of them, so that spaces before a digit become other tokens.
"""
BEGINNING_BY_DEFAULT = ("llama3", "llama-v3", "llama-bpe")
"""Byte-level pre-tokenizers that begin texts with the BOS unless the metadata disable it, by the same names."""
PROBES = ("a", "  12 + 345\n\n67, né: don't", "<think>x</think>")


def load_gguf_tokenizer(folder: str, file: str, header: Header, name: str) -> Any:
    """Return the tokenizer in the GGUF `file` of `folder`; errors call the file `name`.

    Raises ModelError if Transformers cannot build it, if its special tokens are not those of the file, or if the chat
    template of the file is no text.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    except Exception as error:  # Transformers raises many errors for bad files
        raise ModelError(
            f"{name} has no tokenizer that Transformers can build ({first_line(error)}); give a folder of the model "
            "with its own tokenizer"
        ) from None
    for key in ("bos_token_id", "eos_token_id"):
        stored = header.values.get(f"{KEY}{key}")
        if stored is not None and getattr(tokenizer, key) != stored:
            raise ModelError(
                f"{name}: its metadata have {KEY}{key}={stored!r:.100}, and Transformers builds a tokenizer with "
                f"{key}={getattr(tokenizer, key)}; give a folder of the model with its own tokenizer"
            )
    tokenizer.chat_template = _template(header, name)
    _cut_digits(tokenizer, header)
    _begin(tokenizer, header)
    return tokenizer


def check_reloaded(tokenizer: Any, folder: str, name: str) -> None:
    """Raise ModelError if Transformers loads another tokenizer from `folder` than the one that was saved there.

    Transformers selects the class of a tokenizer by the type of the model, and some classes add rules of their own.
    """
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder)
    for text in PROBES:
        if again.encode(text) != tokenizer.encode(text) or again.chat_template != tokenizer.chat_template:
            raise ModelError(
                f"{name}: Transformers saves and loads its tokenizer as another one ({text!r}); give a folder of the "
                "model with its own tokenizer"
            )


def end_tokens(header: Header) -> list[int]:
    """Return the tokens that end a completion: the end of the text and the end of a turn."""
    ends = (header.values.get(f"{KEY}{key}") for key in ("eos_token_id", "eot_token_id"))
    return [*dict.fromkeys(token for token in ends if isinstance(token, int))]


def _template(header: Header, name: str) -> str | None:
    template = header.values.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ModelError(f"{name}: its tokenizer.chat_template is a {type(template).__name__}; give another file")
    return template


def _cut_digits(tokenizer: Any, header: Header) -> None:
    if header.values.get(f"{KEY}model") == "gpt2" and header.values.get(f"{KEY}pre") in DIGIT_BY_DIGIT:
        from tokenizers import pre_tokenizers

        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


def _begin(tokenizer: Any, header: Header) -> None:
    """Make texts begin with the BOS if the metadata require it, as in llama.cpp, and add nothing at the end."""
    by_default = header.values.get(f"{KEY}model") == "llama" or header.values.get(f"{KEY}pre") in BEGINNING_BY_DEFAULT
    wanted = bool(header.values.get(f"{KEY}add_bos_token", by_default)) and tokenizer.bos_token is not None
    plain = tokenizer.encode("a", add_special_tokens=False)
    if tokenizer.encode("a") == [tokenizer.bos_token_id, *plain] if wanted else tokenizer.encode("a") == plain:
        return
    from tokenizers import processors

    head = f"{tokenizer.bos_token} " if wanted else ""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{head}$A",
        pair=f"{head}$A {head}$B:1",
        special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)] if wanted else [],
    )
