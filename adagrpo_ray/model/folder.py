"""Checks of the folder of a model or adapter before it is loaded.

Weights are read from safetensors files only, since unpickling a file runs the code in it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adagrpo_ray.config.model import LoraSettings
from adagrpo_ray.errors import ModelError, first_line

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NOT_PLAIN = (
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "bias", "lora_bias"),
    *("fan_in_fan_out", "target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens"),
    *("use_qalora", "use_bdlora", "arrow_config", "monteclora_config", "kasa_config", "velora_config"),
)
"""Keys of adapters that are more than pairs of A and B of linear layers, scaled by alpha / r."""
CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of PEFT's `init_lora_weights` with which an adapter belongs to changed base weights."""
PARTIAL = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Keys of adapter_config.json that exclude layers which `target_modules` names."""


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of a LoRA adapter.

    `base` is the base model that the adapter names, "" if it names none. `targets` are the names of the linear layers
    that it changes, all layers of each name; None if unknown.
    """

    r: int
    alpha: float
    base: str
    targets: tuple[str, ...] | None = None


def check_model_folder(path: str, setting: str = "model.path") -> None:
    """Raise ModelError, which names `setting`, unless `path` has a model with undamaged safetensors."""
    folder = Path(path)
    files = sorted(folder.glob("*.safetensors"))
    if not files and (other := sorted(folder.glob("*.gguf"))):
        raise ModelError(f"{setting}={path!r} holds no *.safetensors; give its GGUF file: {setting}={other[0]}")
    check_folder(setting, path, ("config.json",))
    if (folder / ADAPTER_CONFIG).is_file():  # Transformers would load the model that it names instead
        raise ModelError(f"{setting}={path!r} holds {ADAPTER_CONFIG}; give its base model, and it as model.adapter")
    if not files:
        raise ModelError(
            f"{setting}={path!r} holds no *.safetensors; save the model with save_pretrained "
            "(pickled weights are not read)"
        )
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        shards = read_json(setting, folder / INDEX).get("weight_map")
        named = set(map(str, shards.values())) if isinstance(shards, dict) else {str(shards)}
        if foreign := sorted(named - {file.name for file in files}):
            raise ModelError(
                f"{setting}: {folder / INDEX} names {foreign[0]!r}, which is no *.safetensors of that folder; "
                "copy the whole folder again"
            )
    _check_weights(setting, files)


def check_adapter_folder(path: str, lora: LoraSettings) -> None:
    """Raise ModelError unless `path` has a LoRA adapter of the rank and alpha of `lora`, as safetensors."""
    kept = read_adapter_folder(path, "model.adapter")
    if (kept.r, kept.alpha) != (lora.r, lora.alpha):
        raise ModelError(
            f"model.adapter={path!r} has r={kept.r} and alpha={kept.alpha:g}, and the settings have "
            f"model.lora.r={lora.r} and model.lora.alpha={lora.alpha:g}; make them the same"
        )


def read_adapter_folder(path: str, setting: str) -> AdapterSettings:
    """Return the settings of the plain LoRA adapter in the folder `path`, in PEFT's layout, with safetensors.

    Only the header of the weights is read. Raises ModelError, which names `setting`, if the folder is none.
    """
    check_folder(setting, path, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    folder = Path(path)
    kept = read_json(setting, folder / ADAPTER_CONFIG)
    if kept.get("peft_type") != "LORA":
        raise ModelError(f"{setting}={path!r} has peft_type={kept.get('peft_type')!r}; give an adapter of LORA")
    for key in NOT_PLAIN:
        if kept.get(key) and kept[key] != "none":
            raise ModelError(f"{setting}={path!r} has {key}={kept[key]!r:.100}; give plain LoRA")
    if str(kept.get("init_lora_weights")).lower().startswith(CHANGING_THE_BASE):
        raise ModelError(
            f"{setting}={path!r} has init_lora_weights={kept['init_lora_weights']!r:.100}, which changes the base "
            "model's weights too; give plain LoRA"
        )
    _check_weights(setting, [folder / ADAPTER_WEIGHTS])
    return adapter_settings(
        f"{setting}={path!r}",
        kept.get("r"),
        kept.get("lora_alpha"),
        kept.get("base_model_name_or_path"),
        None if any(kept.get(key) is not None for key in PARTIAL) else kept.get("target_modules"),
    )


def adapter_settings(name: str, r: Any, alpha: Any, base: Any, targets: Any = None) -> AdapterSettings:
    """Return values of adapter_config.json as settings.

    `targets` are used if they are a list of names; PEFT also accepts a regular expression. Raises ModelError, which
    calls the adapter `name`, if `r` is no rank or `alpha` no scale.
    """
    if type(r) is not int or type(alpha) not in (int, float) or r < 1 or not 0 < alpha <= sys.float_info.max:
        raise ModelError(
            f"{name} has r={r!r:.100} and alpha={alpha!r:.100}; give an adapter with numbers above 0 there"
        )
    names = tuple(map(str, targets)) if isinstance(targets, list | tuple) else None
    return AdapterSettings(r, float(alpha), str(base or ""), names)


def check_folder(setting: str, path: str, needed: tuple[str, ...]) -> None:
    """Raise ModelError unless `path` is a folder with the files `needed`."""
    if not os.path.isdir(path):
        raise ModelError(f"{setting}={path!r} is no folder; give the folder that holds {needed[0]}")
    missing = [name for name in needed if not (Path(path) / name).is_file()]
    if missing:
        pickles = " (pickled weights are not read)" if missing[0] == ADAPTER_WEIGHTS else ""
        raise ModelError(f"{setting}={path!r} holds no {missing[0]}; give a folder written by save_pretrained{pickles}")


def _check_weights(setting: str, files: Iterable[Path]) -> None:
    """Raise ModelError if a file is shorter than its header requires, as after an interrupted copy."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{setting}: {file} is damaged ({first_line(error)}); copy or save it again") from None


def read_json(setting: str, file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`. Raises ModelError if there is none."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{setting}: {file} is not JSON ({first_line(error)}); copy or save it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{setting}: {file} holds a {type(content).__name__}, no JSON object; copy or save it again")
    return content
