"""LoRA weights on their way from the learner to the rollout actors, and the digest that verifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """One version of the adapter, as one buffer that Ray's object store shares without copies.

    - `data`: a safetensors file in memory, keyed as in PEFT's files.
    - `r`, `alpha`: rank and alpha of LoRA.
    - `digest`: the `digest_of` the tensors. Every rollout actor computes it from the weights that it holds, and must
      get the same.
    """

    version: int
    data: NDArray[np.uint8]
    r: int
    alpha: float
    digest: str

    @property
    def scaling(self) -> float:
        """The factor of B A in the forward pass."""
        return self.alpha / self.r


def pack(version: int, tensors: Mapping[str, torch.Tensor], r: int, alpha: float, dtype: torch.dtype) -> AdapterWeights:
    """Pack the tensors of PEFT's state dict for the object store; `dtype` is the type that the engines compute in."""
    on_host = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    return AdapterWeights(
        version=version,
        data=np.frombuffer(save(on_host), dtype=np.uint8),
        r=r,
        alpha=alpha,
        digest=digest_of(as_pairs(on_host), alpha / r),
    )


def unpack(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors in `AdapterWeights.data`, keyed as in PEFT's files."""
    return load(data)


def as_pairs(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Map module names of the base model to (A [r, in], B [out, r]). Raises ValueError if there are other tensors."""
    pairs = {}
    for name, tensor in tensors.items():
        other = tensors.get(name.replace(".lora_A.weight", ".lora_B.weight"))
        if name.endswith(".lora_A.weight") and other is not None:
            pairs[name.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")] = (tensor, other)
    if 2 * len(pairs) != len(tensors):
        raise ValueError(f"the adapter has tensors other than pairs of lora_A and lora_B: {sorted(tensors)[:4]} ...")
    return pairs


def digest_of(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scaling: float) -> str:
    """SHA-256 over module names, A and scaling x B, in the order of the names.

    It includes the scale because an adapter with the wrong scale is as wrong as one with wrong weights. The
    multiplication is elementwise in the type of the tensors, so that every machine gets the same bytes.
    """
    sha = hashlib.sha256()
    for module in sorted(pairs):
        a, b = pairs[module]
        sha.update(module.encode())
        for tensor in (a, b if scaling == 1.0 else b * scaling):
            sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
