"""Finding and loading the base model, its tokenizer, and the policy with its adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY = "tiny"


def resolve_model(config: Config) -> str:
    """Where the base model is: the tiny one (built on first use), a folder, or a Hub name that can be found.

    Raises ModelError where there is no such model, or it holds no safetensors weights, or where
    `model.adapter` is no PEFT adapter.
    """
    from adagrpo_ray.model.tiny import build_tiny_model

    if config.model.adapter is not None:
        _check_folder("model.adapter", config.model.adapter, ("adapter_config.json", "adapter_model.safetensors"))
    path = config.model.path
    if path == TINY:
        return str(build_tiny_model(config.arithmetic, config.data.format))
    if Path(path).exists():
        _check_folder("model.path", path, ("config.json",))
        if not any(Path(path).glob("*.safetensors")):
            raise ModelError(
                f"model.path={path!r} holds no *.safetensors; save the model with save_pretrained "
                "(pickled weights are not read)"
            )
        return path
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(path, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path={path!r} is neither 'tiny', nor a folder, nor a model that the Hub gives out "
            f"({_first_line(error)}); give a folder or a Hub name"
        ) from None
    return path


def load_tokenizer(path: str, config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer of the model at `path`; ModelError where there is none or it has no chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, trust_remote_code=config.model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path={config.model.path!r} has no tokenizer: {_first_line(error)}") from None
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


def load_policy(path: str, config: Config) -> Any:
    """The base model with a trainable adapter (a PeftModel): a new one, or `model.adapter` to continue.

    A new adapter's A is drawn from `run.seed` and B is zero, so that it changes nothing yet. Raises
    ModelError where the model has none of `model.lora.targets`, or cannot keep the samples of a packed row apart.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    settings, flash = config.model, flash_attention(config)
    packed = config.learner.packed(flash)
    try:
        base = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, settings.dtype),
            attn_implementation="flash_attention_2" if flash and packed else "sdpa",
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path={settings.path!r} cannot be loaded: {_first_line(error)}") from None
    if packed and base._is_stateful:
        raise ModelError(
            f"model.path={settings.path!r} ({base.config.model_type}) has layers with a state, which would go from one "
            "sample of a packed row to the next; set learner.layout=padded"
        )
    if settings.adapter is not None:
        try:
            model = PeftModel.from_pretrained(base, settings.adapter, is_trainable=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"model.adapter={settings.adapter!r} does not fit model.path={settings.path!r}: {_first_line(error)}"
            ) from None
        kept = model.peft_config["default"]
        if (kept.r, float(kept.lora_alpha)) != (settings.lora.r, settings.lora.alpha):
            raise ModelError(
                f"model.adapter={settings.adapter!r} has r={kept.r} and alpha={kept.lora_alpha}, the settings say "
                f"model.lora.r={settings.lora.r} and model.lora.alpha={settings.lora.alpha:g}; make them equal"
            )
        return model
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


def _check_folder(setting: str, path: str, needed: tuple[str, ...]) -> None:
    if not Path(path).is_dir():
        raise ModelError(f"{setting}={path!r} is no folder; give the folder that holds {needed[0]}")
    missing = [name for name in needed if not (Path(path) / name).is_file()]
    if missing:
        raise ModelError(f"{setting}={path!r} holds no {missing[0]}; give a folder written by save_pretrained")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
