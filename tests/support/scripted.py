"""Makes byte-level tokenizers with given special tokens, and models that generate a given sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASKS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}answer:{% endif %}"
)
"""A chat template without special tokens."""


def byte_tokenizer(
    special: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    plain: Sequence[str] = (),
    merged: Sequence[str] = (),
    template: str = CHATML,
    **named: str,
) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes.

    special, plain: added tokens.
    merged: ASCII texts that are one token each, by byte-pair encoding.
    named: named tokens, such as `eos_token`.
    """
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for text in merged:
        text = text.replace("\n", "Ċ").replace(" ", "Ġ")
        for end in range(2, len(text) + 1):
            if text[:end] not in vocabulary:
                merges.append((text[: end - 1], text[end - 1]))
                vocabulary[text[:end]] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, clean_up_tokenization_spaces=False, **named
    )


def tokenizer_of(adds: str = "", template: str | None = CHATML) -> Any:
    """A byte-level tokenizer whose post-processor adds BOS and EOS (`adds` is "both"), BOS, or nothing ("")."""
    tokenizer: Any = byte_tokenizer((BOS, EOS, "<|im_start|>", "<|im_end|>"), bos_token=BOS, eos_token=EOS)
    tokenizer.chat_template = template
    if adds:
        tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, EOS)]
        single = f"{BOS} $A" + (f" {EOS}" if adds == "both" else "")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B:1", special_tokens=tokens
        )
    return tokenizer


def scripted_model(folder: Path, tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], **generation: Any) -> Path:
    """A Llama that generates these distinct tokens in turn, beginning after a newline, and then repeats the last one.

    Its layer adds nothing, so that each token depends only on the one before it. `generation` is the content of its
    generation_config.json.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    assert len(set(ids)) == len(ids)
    size = 32 * -(-len(tokenizer) // 32)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=size // 32,
        num_key_value_heads=size // 32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(size)[: len(tokenizer)])
        (newline,) = tokenizer.encode("\n", add_special_tokens=False)
        for before, after in pairwise([newline, *ids, ids[-1]]):
            model.lm_head.weight[after, before] = 14.0 / size**0.5  # all other tokens together: 1 in 4,000
    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
