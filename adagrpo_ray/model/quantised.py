"""Whether the weights of a base model are quantised: no adapter is trained on such weights, or merged into them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import ModelError

KEYS = ("quantization_config", "compression_config")
"""Keys of config.json that only quantised models have."""
FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json")
"""Files that only folders of quantised models have: of GPTQ, AWQ and ModelOpt."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that are not quantised, as safetensors calls them."""
WEIGHTS = ("weight", "qweight", "weight_packed", "blocks")
"""How the names of tensors end that are, or hold, a layer's weights."""


def check_unquantised(path: str, found: Any, name: str, purpose: str) -> None:
    """ModelError, which calls the model `name`, if the one at `path` is quantised; `purpose` says what it is not for.

    `found` is Transformers' configuration of it.
    """
    sign = next(_signs(path, found), None)
    if sign is not None:
        raise ModelError(
            f"model.path={name!r} is quantised ({sign}), and {purpose}; give the model that it was made from, or "
            "one saved after `model.dequantize()`"
        )


def _signs(path: str, found: Any) -> Iterator[str]:
    for config in (found, found.get_text_config()):
        for key in KEYS:
            if (settings := getattr(config, key, None)) is not None:
                kept = settings if isinstance(settings, dict) else vars(settings)
                method = kept.get("quant_method") or kept.get("quant_algo")
                yield f"{key}: {getattr(method, 'value', method)}" if method else key
    folder = Path(path)
    yield from (name for name in FILES if (folder / name).is_file())
    for file in sorted(folder.glob("*.safetensors")):
        yield from _packed(file)


def _packed(file: Path) -> Iterator[str]:
    """Weights in `file` that are no floating-point numbers of 16 bits or more."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 it is no dict
            if name.endswith(WEIGHTS) and (dtype := tensors.get_slice(name).get_dtype()) not in FLOATS:
                yield f"{name} in {file.name} is of type {dtype}"
