"""The scaling of the rotary embedding in a GGUF file, which Transformers ignores when it reads one."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.gguf_header import Header, Tensor

ROPE_FACTORS = "rope_freqs.weight"
"""Name of the tensor with the divisors of the frequencies."""
LOW, HIGH, ORIGINAL = 1.0, 4.0, 8192
"""low_freq_factor, high_freq_factor and original_max_position_embeddings of all versions of Llama 3."""


def set_rope(config: Any, file: Path, header: Header, called: str) -> None:
    """Add Llama 3's scaling to the Transformers `config` of the model in `file`, if the file has it.

    Raises ModelError, which calls the file `called`, if it has another scaling: without it the model would be wrong.
    """
    lost = "which is lost when Transformers reads a GGUF file; give a folder of that model with safetensors"
    kind, factor = header.of_model("rope.scaling.type", "none"), header.of_model("rope.scaling.factor", 1.0)
    if kind not in ("none", "") and factor != 1.0 and header.architecture != "gpt-oss":
        raise ModelError(
            f"{called} scales its rotary embedding ({header.architecture}.rope.scaling.type={kind!r:.100}), {lost}"
        )
    stored = next((tensor for tensor in header.tensors if tensor.name == ROPE_FACTORS), None)
    if stored is None:
        return
    factors = _floats(file, stored) if stored.type == "F32" else ()
    theta, dimensions = header.of_model("rope.freq_base"), 2 * len(factors)
    largest = max(factors, default=math.nan)
    expected = llama3_factors(theta, dimensions, largest) if isinstance(theta, float) and theta > 1 else []
    if config.model_type != "llama" or not _alike(factors, expected):
        raise ModelError(f"{called} scales its rotary embedding by the tensor {ROPE_FACTORS}, {lost}")
    config.rope_parameters = {
        **{"rope_type": "llama3", "rope_theta": theta, "factor": largest},
        **{"low_freq_factor": LOW, "high_freq_factor": HIGH, "original_max_position_embeddings": ORIGINAL},
    }


def _floats(file: Path, tensor: Tensor) -> tuple[float, ...]:
    with file.open("rb") as content:
        content.seek(tensor.begin)
        return struct.unpack(f"<{(tensor.end - tensor.begin) // 4}f", content.read(tensor.end - tensor.begin))


def _alike(found: Sequence[float], expected: Sequence[float]) -> bool:
    """Return whether they are equal up to rounding to float32."""
    return len(found) == len(expected) > 0 and all(
        math.isclose(one, other, rel_tol=1e-3) for one, other in zip(found, expected, strict=True)
    )


def llama3_factors(theta: float, dimensions: int, factor: float) -> list[float]:
    """Return the divisors of Llama 3 for the `dimensions` / 2 frequencies of base `theta`."""
    found = []
    for place in range(0, dimensions, 2):
        length = 2 * math.pi * theta ** (place / dimensions)
        smooth = (ORIGINAL / length - LOW) / (HIGH - LOW)
        if length < ORIGINAL / HIGH:
            found.append(1.0)
        elif length > ORIGINAL / LOW:
            found.append(factor)
        else:
            found.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return found
