"""Finding the base model, and loading its configuration and tokenizer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.data import DataSettings
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.template_choice import chosen_template, use_template
from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.model.folder import check_adapter_folder, check_model_folder
from adagrpo_ray.model.gguf_file import is_gguf
from adagrpo_ray.model.gguf_model import dequantised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY = "tiny"


def resolve_model(config: Config) -> str:
    """Return the folder or Hub name of the base model.

    On the first use the tiny model is built and a GGUF file is dequantised, both in the cache. Raises ModelError if
    there is no such model, it is no causal language model, its safetensors are missing or damaged, or `model.adapter`
    is no LoRA adapter for the settings.
    """
    from adagrpo_ray.toy.tiny import build_tiny_model

    if config.model.adapter is not None:
        check_adapter_folder(config.model.adapter, config.model.lora)
    path = config.model.path
    if path == TINY:
        return str(build_tiny_model(config.arithmetic, config.data.format))
    if is_gguf(path):
        return str(dequantised(path))
    if os.path.exists(path):
        check_model_folder(path)
    read_model_config(path, config.model)
    return path


def read_model_config(path: str, model: ModelSettings) -> Any:
    """Return Transformers' configuration of the causal language model at `path`. Raises ModelError if there is none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    trusted = model.trust_remote_code
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=trusted)
    except Exception as error:  # Transformers raises many errors for bad files
        if os.path.isdir(path):
            raise ModelError(
                f"model.path={path!r} has a config.json that cannot be used ({first_line(error)}); correct it, or "
                "save the model again"
            ) from None
        raise ModelError(
            f"model.path={path!r} is neither 'tiny', nor a folder, nor a model that can be loaded from the Hub "
            f"({first_line(error)}); give a folder, a .gguf file or a Hub name"
        ) from None
    own_code = trusted and "AutoModelForCausalLM" in (getattr(found, "auto_map", None) or {})
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        raise ModelError(f"model.path={path!r} is of type {found.model_type!r}, no causal language model; give one")
    if str(getattr(found, "transformers_weights", None) or ".safetensors").endswith(".bin"):
        raise ModelError(
            f"model.path={path!r} names pickled weights ({found.transformers_weights}), which are not read"
        )
    return found


def load_tokenizer(path: str, model: ModelSettings, data: DataSettings) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model at `path`, with the chat template of `data.chat_template`.

    Raises ModelError if there is no tokenizer, or if neither it nor the settings have a chat template. Raises
    ConfigError as `chosen_template`.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # Transformers raises many errors for bad files
        raise ModelError(
            f"model.path={model.path!r} has no tokenizer that can be used: {first_line(error)}; save it there "
            "with save_pretrained"
        ) from None
    use_template(tokenizer, chosen_template(data))
    if tokenizer.chat_template is None and data.chat_template is None:
        raise ModelError(
            f"model.path={model.path!r}: its tokenizer has no chat template; give a Jinja file as "
            "data.chat_template, or set it to none for prompts of plain text"
        )
    return tokenizer


def linear_shapes(path: str, model: ModelSettings) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of every linear layer of the model at `path`, by module name, without its weights.

    Raises ModelError if Transformers cannot build it.
    """
    return shapes_of(build_without_weights(read_model_config(path, model), model))


def shapes_of(model: Any) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of every linear layer of a model, by module name."""
    import torch

    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    return {name: (layer.in_features, layer.out_features) for name, layer in layers}


def build_without_weights(found: Any, model: ModelSettings) -> Any:
    """Build the model of a Transformers configuration without memory for its weights. Raises ModelError if it fails."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(found, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # Transformers raises many errors for bad files
        raise ModelError(f"model.path={model.path!r} cannot be built: {first_line(error)}") from None
