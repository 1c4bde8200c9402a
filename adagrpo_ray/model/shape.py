"""The sizes of a model, read from its configuration without its weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.gguf_file import find_gguf, is_gguf
from adagrpo_ray.model.gguf_header import read_header
from adagrpo_ray.model.gguf_model import gguf_config
from adagrpo_ray.model.pretrained import TINY


@dataclass(frozen=True)
class Shape:
    """The sizes of a dense decoder with gated MLPs, and `model_type`, its type in Transformers."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # whether input and output embeddings are one matrix
    model_type: str

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer, by name."""
        h, q, kv, m = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate
        attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, m), "up_proj": (h, m), "down_proj": (m, h)}

    @property
    def parameters(self) -> int:
        """Parameters of the base model: its linear layers and its embeddings."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * sum(i * o for i, o in self.linear.values())

    def adapter_parameters(self, r: int, targets: tuple[str, ...]) -> int:
        """Parameters of a LoRA adapter: A is [r x inputs], B [outputs x r]. Raises ModelError for an unknown target."""
        unknown = sorted(set(targets) - set(self.linear))
        if unknown:
            raise ModelError(f"the shape of model.lora.targets {unknown[0]!r} is not known")
        return self.layers * r * sum(sum(self.linear[target]) for target in set(targets))

    def kv_token(self, size: int, tensor_parallel: int) -> int:
        """Bytes of a token in one GPU's KV cache: key and value of its heads, at least one; `size` bytes a number."""
        return 2 * self.layers * max(1, self.kv_heads // tensor_parallel) * self.head_dim * size


def shape_of(config: Any) -> Shape:
    """The shape in a Hugging Face config. Raises ModelError if a size is missing or it is a mixture of experts."""
    text = config.get_text_config()
    if any((getattr(text, name, 0) or 0) > 1 for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise ModelError(f"the shape of a mixture of experts ({text.model_type}) is not known")

    def size(name: str, default: int | None = None) -> int:
        value = getattr(text, name, None) or default
        if value is None:
            raise ModelError(f"the config of {text.model_type} has no {name}")
        return int(value)

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    return Shape(
        hidden=hidden,
        layers=size("num_hidden_layers"),
        intermediate=size("intermediate_size"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", hidden // heads),
        vocabulary=size("vocab_size"),
        tied=bool(getattr(text, "tie_word_embeddings", False)),
        model_type=str(config.model_type),
    )


def read_shape(config: Config) -> Shape:
    """Read the shape of `model.path` without the network and without building the model.

    Raises ModelError with the reason if the shape is not known.
    """
    path = config.model.path
    if path == TINY:
        from adagrpo_ray.toy.tiny import tiny_folder

        path = str(tiny_folder(config.arithmetic, config.data.format))
        if not Path(path).is_dir():
            raise ModelError("the tiny model is built on first use")
    if is_gguf(path):
        called = f"model.path={path!r}"
        # From the header only: --dry-run writes nothing.
        return shape_of(gguf_config(read_header(find_gguf(path), called), called))
    from transformers import AutoConfig

    try:
        trusted = config.model.trust_remote_code
        found = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # Transformers may raise any error for an invalid file
        if isinstance(error, OSError) and not os.path.exists(path):
            raise ModelError(f"{path} is not on this machine yet") from None
        raise ModelError(f"{path} has no config.json that can be read") from None
    return shape_of(found)
