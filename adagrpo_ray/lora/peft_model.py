"""The policy: the base model with a trainable LoRA adapter of PEFT's."""

from __future__ import annotations

import os
from typing import Any

from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.lora.payload import PEFT_PREFIX
from adagrpo_ray.model.folder import ADAPTER_WEIGHTS, check_adapter_folder
from adagrpo_ray.model.gguf_file import is_gguf
from adagrpo_ray.model.pretrained import flash_attention, shapes_of


def with_adapter(base: Any, model: ModelSettings) -> Any:
    """The model `base` with a new adapter on its linear layers that `model.lora.targets` names (a PeftModel).

    Raises ModelError if one of them is the name of none of its layers, or of something that no LoRA adapter of vLLM's
    changes: the head, or the experts that Transformers has joined into one tensor.
    """
    from peft import LoraConfig, get_peft_model

    lora, layers, setting = model.lora, shapes_of(base), f"model.lora.targets: {model.path}"
    head = base.get_output_embeddings()
    names = {n.rpartition(".")[2] for n, m in base.named_modules() if n in layers and m is not head}
    if unknown := [target for target in lora.targets if target not in names]:
        raise ModelError(
            f"{setting} has no linear layer {unknown[0]!r}; it has {', '.join(sorted(names)) or 'none'}"
            + (" (the head gets no adapter)" if head in _named(base, unknown[0]) else "")
        )
    try:
        policy = get_peft_model(
            base,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=lora.r,
                lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=list(lora.targets),
            ),
            autocast_adapter_dtype=False,
        )
    except Exception as error:  # PEFT knows layers of some models that it cannot change
        raise ModelError(f"{setting} gets no adapter of {', '.join(lora.targets)}: {first_line(error)}") from None
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    changed = {name.partition(".lora_")[0].removeprefix(PEFT_PREFIX) for name in trained}
    if joined := sorted(changed - {name for name in layers if name.rpartition(".")[2] in lora.targets}):
        raise ModelError(
            f"{setting} has {joined[0]}, which {', '.join(lora.targets)} name too and which is no linear layer; "
            "leave out the names that its experts have"
        )
    return policy


def _named(model: Any, target: str) -> list[Any]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] == target]


def load_policy(path: str, config: Config) -> Any:
    """The base model with a trainable adapter (a PeftModel): a new one, or `model.adapter` to continue.

    A new adapter's A is drawn from `run.seed` and B is zero, so that it changes nothing yet. One to continue has the
    weights of `model.adapter` and the settings of `model.lora`. Raises ModelError if the model has none of
    `model.lora.targets`, if `model.adapter` does not fill exactly that adapter, or if the model cannot keep the
    samples of a row apart. Pickled weights are not read.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from adagrpo_ray.model.shared_attention import share_prompts  # imports transformers, which takes seconds

    settings, flash = config.model, flash_attention(config.model)
    if settings.adapter is not None:  # it may be another one on this node
        check_adapter_folder(settings.adapter, settings.lora)
    packing = config.learner.packing_with(flash)
    try:
        base = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, settings.dtype),
            attn_implementation="flash_attention_2" if flash and packing == "packed" else "sdpa",
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
        )
    except Exception as error:  # what a file holds makes Transformers fail in any way
        raise ModelError(f"model.path={settings.path!r} cannot be loaded: {first_line(error)}") from None
    name = f"model.path={settings.path!r} ({base.config.model_type})"
    if packing == "packed" and base._is_stateful:
        raise ModelError(
            f"{name} has layers with a state, which would go from one sample of a packed row to the next; set "
            "learner.packing=padded"
        )
    if packing == "shared" and not share_prompts(base) and config.learner.packing == "shared":
        raise ModelError(f"{name} has layers that cannot share a prompt; set learner.packing=padded")
    torch.manual_seed(config.run.seed)
    policy = with_adapter(base, settings)
    if is_gguf(settings.path):  # a name that says something on other machines too, as a folder of the cache does not
        policy.peft_config["default"].base_model_name_or_path = settings.path
    if settings.adapter is not None:
        _fill(policy, settings.adapter, settings.path)
    return policy


def _fill(policy: Any, adapter: str, path: str) -> None:
    """Put the weights of the folder `adapter` into `policy`; ModelError unless each finds its place and none lacks."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    misfit = f"model.adapter={adapter!r} does not fit model.path={path!r} and model.lora"
    try:
        result = set_peft_model_state_dict(policy, load_file(os.path.join(adapter, ADAPTER_WEIGHTS)))
    except Exception as error:  # what a file holds makes PEFT fail in any way
        raise ModelError(f"{misfit}: {first_line(error)}") from None
    lacking = sorted(key for key in result.missing_keys if "lora_" in key)
    if unknown := sorted(result.unexpected_keys):
        raise ModelError(f"{misfit}, which have no place for its {unknown[0]!r} ({len(unknown)} such keys)")
    if lacking:
        raise ModelError(f"{misfit}: it holds no {lacking[0]!r} ({len(lacking)} such keys)")
