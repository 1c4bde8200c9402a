"""Detecting quantised base models, on which no adapter is trained and into which none is merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import ModelError

KEYS = ("quantization_config", "compression_config")
"""Keys of config.json, or of a part of it, that only quantised models have."""
FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json")
"""Files that only folders of quantised models have (GPTQ, AWQ, ModelOpt)."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that are not quantised, by their names in safetensors."""
WEIGHTS = ("weight", "qweight", "weight_packed", "blocks")
"""Endings of the names of tensors with weights of a layer."""


def check_unquantised(path: str, found: Mapping[str, Any], named: str, purpose: str, instead: str = "") -> None:
    """Raise ModelError if the model at `path` is quantised.

    `found` is the content of its config.json. The message has `named`, the setting with its value, and `purpose`, the
    reason why the model cannot be used; `instead` is another remedy, with ", or " at its end.
    """
    sign = next(_signs(path, found), None)
    if sign is not None:
        raise ModelError(
            f"{named} is quantised ({sign}), and {purpose}; {instead}give the model that it was made from, or "
            "one saved after `model.dequantize()`"
        )


def _signs(path: str, found: Mapping[str, Any]) -> Iterator[str]:
    for config in (found, *(part for part in found.values() if isinstance(part, Mapping))):
        for key in KEYS:
            if (settings := config.get(key)) is not None:
                kept = settings if isinstance(settings, Mapping) else {}
                method = kept.get("quant_method") or kept.get("quant_algo")
                yield f"{key}: {getattr(method, 'value', method)}" if method else key
    folder = Path(path)
    yield from (name for name in FILES if (folder / name).is_file())
    for file in sorted(folder.glob("*.safetensors")):
        yield from _packed(file)


def _packed(file: Path) -> Iterator[str]:
    """Yield descriptions of the weights in `file` that are no floating-point numbers of 16 bits or more."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 it is no dict
            if name.endswith(WEIGHTS) and (dtype := tensors.get_slice(name).get_dtype()) not in FLOATS:
                yield f"{name} in {file.name} is of type {dtype}"
