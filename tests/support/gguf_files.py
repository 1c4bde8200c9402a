"""Writes GGUF files of small models with a byte-level tokenizer, as llama.cpp's converter does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from tests.support.scripted import CHATML

LAYERS, HIDDEN, HEADS, KEY_VALUE_HEADS, MIDDLE = 2, 64, 2, 1, 96
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he")
TOKENS = (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "he", "Ġthe")
CONTROL, NORMAL = 3, 1


@dataclass
class Recipe:
    """The content of a GGUF file.

    type: the type of the matrices.
    template: the chat template.
    values: override or add metadata; None removes a key.
    tensors: override or add tensors, by llama.cpp's names; None removes one.
    seed: of the weights of a Llama.
    model: a model to write in place of the Llama; None for the Llama.
    """

    type: str = "Q8_0"
    architecture: str = "llama"
    template: str | None = CHATML
    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    model: Any = None


SIZES: dict[str, Any] = {
    **{"vocab_size": len(TOKENS), "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2},
    **{"hidden_size": HIDDEN, "intermediate_size": MIDDLE, "num_hidden_layers": LAYERS},
    **{"num_attention_heads": HEADS, "num_key_value_heads": KEY_VALUE_HEADS},
}


def qwen3(seed: int = 0) -> Any:
    """A Qwen3 with random weights and a tied head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(head_dim=128, tie_word_embeddings=True, **SIZES)).eval()


def llama(seed: int = 0) -> Any:
    """A Llama with random weights and an untied head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **SIZES)).eval()


def write_gguf(file: Path, recipe: Recipe | None = None) -> Path:
    """Write the file, with matrices in `recipe.type` and all other tensors in float32."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    recipe = recipe or Recipe()
    writer = gguf.GGUFWriter(file, recipe.architecture)
    name = recipe.architecture
    values: dict[str, Any] = {
        "general.name": "small",
        "general.license": "apache-2.0",
        f"{name}.block_count": LAYERS,
        f"{name}.context_length": 512,
        f"{name}.embedding_length": HIDDEN,
        f"{name}.feed_forward_length": MIDDLE,
        f"{name}.attention.head_count": HEADS,
        f"{name}.attention.head_count_kv": KEY_VALUE_HEADS,
        f"{name}.rope.dimension_count": HIDDEN // HEADS,
        f"{name}.rope.freq_base": 10000.0,
        f"{name}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{name}.vocab_size": len(TOKENS),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": recipe.template,
        **recipe.values,
    }
    add: dict[type, Callable[[str, Any], None]] = {
        **{bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string},
        **{list: writer.add_array},
    }
    for key, value in values.items():
        if value is not None:
            add[type(value)](key, value)
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in TOKENS])
    writer.add_token_merges(list(MERGES))
    kind = gguf.GGMLQuantizationType[recipe.type]
    model = llama(recipe.seed) if recipe.model is None else recipe.model
    for key, tensor in {**_tensors(model), **recipe.tensors}.items():
        if tensor is None:
            continue
        if tensor.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(key, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _tensors(model: Any) -> dict[str, Any]:
    """The weights by llama.cpp's names, with the rows of queries and keys in llama.cpp's order."""
    weights = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    found = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    if not model.config.tie_word_embeddings:
        found["output.weight"] = weights["lm_head.weight"]
    names = {
        **{"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_v": "self_attn.v_proj"},
        **{"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_output": "self_attn.o_proj"},
        **{"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
    }
    if model.config.model_type == "qwen3":
        names |= {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
    for layer in range(LAYERS):
        for theirs, ours in names.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            heads = {"attn_q": HEADS, "attn_k": KEY_VALUE_HEADS}.get(theirs)
            if heads is not None and model.config.model_type == "llama":  # convert_hf_to_gguf.py, LlamaModel.permute
                rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
                weight = rows.swapaxes(1, 2).reshape(weight.shape)
            found[f"blk.{layer}.{theirs}.weight"] = weight
    return found


def patched(file: Path, place: int, form: str, value: int) -> None:
    """Overwrite the bytes at `place` of the file with a number in the struct format `form`."""
    content = bytearray(file.read_bytes())
    struct.pack_into(form, content, place, value)
    file.write_bytes(content)


def place_of(file: Path, text: str) -> int:
    """The offset after the name or key `text`, which must be in the file once."""
    content, pattern = file.read_bytes(), struct.pack("<Q", len(text)) + text.encode()
    assert content.count(pattern) == 1
    return content.index(pattern) + len(pattern)
