"""The policy: the base model with a trainable LoRA adapter of PEFT."""

from __future__ import annotations

import os
from typing import Any

from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.lora.payload import PEFT_PREFIX
from adagrpo_ray.model.divided import load_divided
from adagrpo_ray.model.folder import ADAPTER_WEIGHTS, check_adapter_folder
from adagrpo_ray.model.gguf_file import is_gguf
from adagrpo_ray.model.pretrained import shapes_of


def with_adapter(base: Any, model: ModelSettings) -> Any:
    """Add a new adapter to the linear layers of `base` that `model.lora.targets` names; returns a PeftModel.

    Raises ModelError if a target is not the name of a linear layer, or if vLLM's LoRA cannot change it: the head, or
    experts that Transformers has joined into one tensor.
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
    except Exception as error:  # PEFT cannot change some layers of some models
        raise ModelError(f"{setting} cannot have adapters of {', '.join(lora.targets)}: {first_line(error)}") from None
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    changed = {name.partition(".lora_")[0].removeprefix(PEFT_PREFIX) for name in trained}
    if joined := sorted(changed - {name for name in layers if name.rpartition(".")[2] in lora.targets}):
        raise ModelError(
            f"{setting} has {joined[0]}, which {', '.join(lora.targets)} also names but which is not a linear layer; "
            "leave out the names of its experts"
        )
    return policy


def _named(model: Any, target: str) -> list[Any]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] == target]


def load_policy(path: str, config: Config, divided: dict[str, Any] | None = None) -> Any:
    """Load the base model with a trainable adapter (a PeftModel): a new one, or `model.adapter` to continue.

    The A of a new adapter is drawn from `run.seed` and its B is zero, so that it does not change the model yet. An
    adapter to continue has the weights of `model.adapter` and the settings of `model.lora`. Pickled weights are not
    read.

    `divided` is a DeepSpeed configuration if the ranks divide the weights (ZeRO stage 3): then all of them call this
    together (`load_divided`).

    Raises ModelError if the model cannot be loaded or lacks a layer of `model.lora.targets`, or if the weights of
    `model.adapter` are not exactly those of the adapter.
    """
    import torch
    from transformers import AutoModelForCausalLM

    settings = config.model
    if settings.adapter is not None:  # the folder may be a different one on this node
        check_adapter_folder(settings.adapter, settings.lora)

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, settings.dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
        )

    try:
        base = load() if divided is None else load_divided(load, divided)
    except Exception as error:  # Transformers may raise any error for an invalid file
        raise ModelError(f"model.path={settings.path!r} cannot be loaded: {first_line(error)}") from None
    torch.manual_seed(config.run.seed)
    policy = with_adapter(base, settings)
    if is_gguf(settings.path):  # a name that is valid on other machines, too, unlike a folder of the cache
        policy.peft_config["default"].base_model_name_or_path = settings.path
    if settings.adapter is not None:
        _fill(policy, settings.adapter, settings.path)
    return policy


def _fill(policy: Any, adapter: str, path: str) -> None:
    """Load the weights in the folder `adapter` into `policy`.

    Raises ModelError if a weight has no place in the policy, or the policy needs one that is missing.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    misfit = f"model.adapter={adapter!r} does not fit model.path={path!r} and model.lora"
    try:
        result = set_peft_model_state_dict(policy, load_file(os.path.join(adapter, ADAPTER_WEIGHTS)))
    except Exception as error:  # PEFT may raise any error for an invalid file
        raise ModelError(f"{misfit}: {first_line(error)}") from None
    missing = sorted(key for key in result.missing_keys if "lora_" in key)
    if unknown := sorted(result.unexpected_keys):
        raise ModelError(f"{misfit}, which have no place for its {unknown[0]!r} ({len(unknown)} such keys)")
    if missing:
        raise ModelError(f"{misfit}: it has no {missing[0]!r} ({len(missing)} such keys)")
