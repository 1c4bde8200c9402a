"""Liger's kernels: they are used if everything that they need is there; otherwise the notice has the reason."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from adagrpo_ray.model import liger
from adagrpo_ray.model.liger import use_liger_kernels

MODEL = SimpleNamespace(config=SimpleNamespace(model_type="qwen3"))


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine with a GPU, Triton and liger-kernel; the calls of Transformers' function are recorded."""
    calls: list[Any] = []
    known = ModuleType("liger_kernel.transformers.monkey_patch")
    known.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": None}  # type: ignore[attr-defined]
    integration = ModuleType("transformers.integrations.liger")
    integration.apply_liger_kernel = lambda *arguments: calls.append(arguments)  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, known.__name__, known)
    monkeypatch.setitem(sys.modules, integration.__name__, integration)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(liger, "find_spec", lambda name: name)
    return calls


def test_only_norms_and_mlps_get_other_kernels(applied: list[Any]) -> None:
    assert use_liger_kernels(MODEL) is None
    ((model, kernels),) = applied
    assert model is MODEL
    assert {name for name, used in kernels.items() if used} == {"rms_norm", "swiglu"}
    assert {name for name, used in kernels.items() if not used} == {
        *("rope", "cross_entropy", "fused_linear_cross_entropy")
    }


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("triton", "Triton is not installed"),
        ("liger_kernel", "liger-kernel is not installed (pip install 'adagrpo_ray[liger]')"),
    ],
)
def test_a_missing_package_leaves_the_model_as_it_is(
    applied: list[Any], monkeypatch: pytest.MonkeyPatch, missing: str, reason: str
) -> None:
    monkeypatch.setattr(liger, "find_spec", lambda name: None if name == missing else name)
    assert use_liger_kernels(MODEL) == f"learner.liger_kernels=true has no effect: {reason}"
    assert applied == []


def test_without_a_gpu_the_model_stays_as_it_is(applied: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert use_liger_kernels(MODEL) == "learner.liger_kernels=true has no effect: the learner has no GPU"
    assert applied == []


def test_a_model_without_kernels_stays_as_it_is(applied: list[Any]) -> None:
    notice = use_liger_kernels(SimpleNamespace(config=SimpleNamespace(model_type="gpt2")))
    assert notice == "learner.liger_kernels=true has no effect: liger-kernel has no kernels for models of type gpt2"
    assert applied == []
