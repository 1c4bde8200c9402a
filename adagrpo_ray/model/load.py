"""Finding and loading the base model, its tokenizer, and the policy with its adapter."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.model.folder import check_adapter_folder, check_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY = "tiny"


def resolve_model(config: Config) -> str:
    """Where the base model is: the tiny one (built on first use), a folder, or a Hub name that can be found.

    Raises ModelError where there is no such model, it is no causal language model, or it holds no safetensors
    weights that are whole, and where `model.adapter` is no such LoRA adapter.
    """
    from adagrpo_ray.model.tiny import build_tiny_model

    if config.model.adapter is not None:
        check_adapter_folder(config.model.adapter, config.model.lora)
    path = config.model.path
    if path == TINY:
        return str(build_tiny_model(config.arithmetic, config.data.format))
    if os.path.exists(path):
        check_model_folder(path)
    read_model_config(path, config)
    return path


def read_model_config(path: str, config: Config) -> Any:
    """Transformers' configuration of the causal language model at `path`; ModelError where there is none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    trusted = config.model.trust_remote_code
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=trusted)
    except Exception as error:  # what a file holds makes Transformers fail in any way
        if os.path.isdir(path):
            raise ModelError(
                f"model.path={path!r} has a config.json that cannot be used ({first_line(error)}); mend it, or "
                "save the model again"
            ) from None
        raise ModelError(
            f"model.path={path!r} is neither 'tiny', nor a folder, nor a model that the Hub gives out "
            f"({first_line(error)}); give a folder or a Hub name"
        ) from None
    own_code = trusted and "AutoModelForCausalLM" in (getattr(found, "auto_map", None) or {})
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        raise ModelError(f"model.path={path!r} is of type {found.model_type!r}, no causal language model; give one")
    if str(getattr(found, "transformers_weights", None) or ".safetensors").endswith(".bin"):
        raise ModelError(
            f"model.path={path!r} names pickled weights ({found.transformers_weights}), which are not read"
        )
    return found


def load_tokenizer(path: str, config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer of the model at `path`; ModelError where there is none or it has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=config.model.trust_remote_code
        )
    except Exception as error:  # what a file holds makes Transformers fail in any way
        raise ModelError(
            f"model.path={config.model.path!r} has no tokenizer that can be used: {first_line(error)}; save it there "
            "with save_pretrained"
        ) from None
    if tokenizer.chat_template is None:
        raise ModelError(
            f"model.path={config.model.path!r}: its tokenizer has no chat template; use an instruction-tuned model, "
            "or add a chat_template.jinja to the folder"
        )
    return tokenizer


def flash_attention(config: Config) -> bool:
    """Whether flash-attention runs here: it is installed, there is a CUDA device, and the model is in bfloat16."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    return config.model.dtype == "bfloat16" and torch.cuda.is_available() and bool(is_flash_attn_2_available())


def linear_shapes(path: str, config: Config) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every linear layer of the model at `path`, by module name; its weights are not read.

    Raises ModelError where Transformers cannot build it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    found, trusted = read_model_config(path, config), config.model.trust_remote_code
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(found, trust_remote_code=trusted)
    except Exception as error:  # what a file holds makes Transformers fail in any way
        raise ModelError(f"model.path={config.model.path!r} cannot be built: {first_line(error)}") from None
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    return {name: (layer.in_features, layer.out_features) for name, layer in layers}


def load_policy(path: str, config: Config) -> Any:
    """The base model with a trainable adapter (a PeftModel): a new one, or `model.adapter` to continue.

    A new adapter's A is drawn from `run.seed` and B is zero, so that it changes nothing yet. Raises
    ModelError where the model has none of `model.lora.targets`, or cannot keep the samples of a packed row apart.
    Pickled weights are not read.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    settings, flash = config.model, flash_attention(config)
    if settings.adapter is not None:  # PEFT would take a pickle where there is no safetensors file on this node
        check_adapter_folder(settings.adapter, settings.lora)
    packed = config.learner.packed(flash)
    try:
        base = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, settings.dtype),
            attn_implementation="flash_attention_2" if flash and packed else "sdpa",
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
        )
    except Exception as error:  # what a file holds makes Transformers fail in any way
        raise ModelError(f"model.path={settings.path!r} cannot be loaded: {first_line(error)}") from None
    if packed and base._is_stateful:
        raise ModelError(
            f"model.path={settings.path!r} ({base.config.model_type}) has layers with a state, which would go from one "
            "sample of a packed row to the next; set learner.layout=padded"
        )
    if settings.adapter is not None:
        try:
            return PeftModel.from_pretrained(base, settings.adapter, is_trainable=True)
        except Exception as error:  # what a file holds makes PEFT fail in any way
            raise ModelError(
                f"model.adapter={settings.adapter!r} does not fit model.path={settings.path!r}: {first_line(error)}"
            ) from None
    linear = {name.rpartition(".")[2] for name, m in base.named_modules() if isinstance(m, torch.nn.Linear)}
    unknown = sorted(set(settings.lora.targets) - linear)
    if unknown:
        raise ModelError(
            f"model.lora.targets: {config.model.path} has no linear layer {unknown[0]!r}; "
            f"it has {', '.join(sorted(linear))}"
        )
    torch.manual_seed(config.run.seed)
    return get_peft_model(
        base,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.lora.r,
            lora_alpha=int(settings.lora.alpha) if settings.lora.alpha.is_integer() else settings.lora.alpha,
            lora_dropout=settings.lora.dropout,
            target_modules=list(settings.lora.targets),
        ),
        autocast_adapter_dtype=False,
    )
