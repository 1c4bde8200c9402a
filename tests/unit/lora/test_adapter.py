"""The payload of an adapter: packing loses nothing, and every change changes the digest."""

from __future__ import annotations

import pytest
import torch

from adagrpo_ray.lora.payload import AdapterWeights, as_pairs, digest_of, pack, unpack

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def make_tensors() -> dict[str, torch.Tensor]:
    """Two modules' A [4, 6] and B [5, 4], keyed as in PEFT's files."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"base_model.model.{module}.lora_{part}.weight": torch.randn(shape, generator=generator)
        for module in MODULES
        for part, shape in (("A", (4, 6)), ("B", (5, 4)))
    }


def packed(tensors: dict[str, torch.Tensor], alpha: float = 8.0, dtype: torch.dtype = torch.float32) -> AdapterWeights:
    return pack(3, tensors, r=4, alpha=alpha, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpack_returns_the_packed_tensors(dtype: torch.dtype) -> None:
    tensors = make_tensors()
    weights = packed(tensors, dtype=dtype)
    back = unpack(weights.data.tobytes())
    assert (weights.version, weights.r, weights.alpha, weights.scaling) == (3, 4, 8.0, 2.0)
    assert back.keys() == tensors.keys()
    assert all(t.dtype == dtype for t in back.values())
    assert all(torch.equal(back[name], tensors[name].to(dtype)) for name in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_receiver_computes_the_same_digest(dtype: torch.dtype) -> None:
    weights = packed(make_tensors(), dtype=dtype)
    assert digest_of(as_pairs(unpack(weights.data.tobytes())), weights.scaling) == weights.digest


def test_tensors_may_be_not_contiguous_and_have_gradients() -> None:
    tensors = make_tensors()
    awkward = {name: t.t().contiguous().t().requires_grad_() for name, t in tensors.items()}
    assert packed(awkward).digest == packed(tensors).digest


def test_pairs_have_the_module_names_of_the_base_model() -> None:
    tensors = make_tensors()
    pairs = as_pairs(tensors)
    assert tuple(pairs) == MODULES
    for module, (a, b) in pairs.items():
        assert a is tensors[f"base_model.model.{module}.lora_A.weight"]
        assert b is tensors[f"base_model.model.{module}.lora_B.weight"]


def test_an_adapter_with_other_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match="tensors other than pairs of lora_A and lora_B"):
        as_pairs({**make_tensors(), "base_model.model.lm_head.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("name", list(make_tensors()))
def test_the_digest_depends_on_every_number_of_every_tensor(name: str) -> None:
    known = packed(make_tensors()).digest
    for place in ((0, 0), (-1, -1)):
        tensors = make_tensors()
        value = tensors[name][place]
        tensors[name][place] = torch.nextafter(value, torch.tensor(9.0))
        assert packed(tensors).digest != known


def test_the_digest_depends_on_the_names() -> None:
    pairs = as_pairs(make_tensors())
    first, second = pairs.values()
    swapped = dict(zip(MODULES, (second, first), strict=True))
    renamed = dict(zip((MODULES[0], "other"), (first, second), strict=True))
    assert len({digest_of(p, 2.0) for p in (pairs, swapped, renamed)}) == 3


def test_the_digest_depends_on_the_scale() -> None:
    assert len({packed(make_tensors(), alpha=alpha).digest for alpha in (2.0, 4.0, 8.0)}) == 3


def test_the_digest_scales_b_as_a_receiver_does() -> None:
    pairs = as_pairs(make_tensors())
    scaled = {module: (a, b * 2.0) for module, (a, b) in pairs.items()}
    assert digest_of(scaled, 1.0) == digest_of(pairs, 2.0)


def test_the_digest_does_not_depend_on_the_order() -> None:
    tensors = make_tensors()
    assert packed(dict(reversed(tensors.items()))).digest == packed(tensors).digest
