"""Liger's kernels: they are used if everything that they need is there; otherwise the notice has the reason.

Only `liger_kernel` itself is replaced; the function of Transformers that calls it is the real one.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from adagrpo_ray.model import liger
from adagrpo_ray.model.liger import use_liger_kernels
from tests.support.random_policies import SMALL, random_policy


@pytest.fixture(scope="module")
def model() -> Any:
    """A small Qwen3 with an adapter, as the learner has it."""
    return random_policy("Qwen3Config", SMALL, device="meta").peft_model


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine with a GPU, Triton and liger-kernel; the model and the kernels of each call are recorded."""
    calls: list[Any] = []
    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    package, transformers, known = modules = [ModuleType(name) for name in names]
    package.transformers, transformers.monkey_patch = transformers, known  # type: ignore[attr-defined]
    known.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": None}  # type: ignore[attr-defined]

    def apply(model: Any, **kernels: bool) -> None:
        calls.append((model, kernels))

    transformers._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(liger, "find_spec", lambda name: name)
    return calls


def test_only_norms_and_mlps_get_other_kernels(applied: list[Any], model: Any) -> None:
    assert use_liger_kernels(model) is None
    ((changed, kernels),) = applied
    assert changed is model.get_base_model()
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
    applied: list[Any], model: Any, monkeypatch: pytest.MonkeyPatch, missing: str, reason: str
) -> None:
    monkeypatch.setattr(liger, "find_spec", lambda name: None if name == missing else name)
    assert use_liger_kernels(model) == f"learner.liger_kernels=true has no effect: {reason}"
    assert applied == []


def test_without_a_gpu_the_model_stays_as_it_is(
    applied: list[Any], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert use_liger_kernels(model) == "learner.liger_kernels=true has no effect: the learner has no GPU"
    assert applied == []


def test_a_model_without_kernels_stays_as_it_is(applied: list[Any]) -> None:
    notice = use_liger_kernels(SimpleNamespace(config=SimpleNamespace(model_type="gpt2")))
    assert notice == "learner.liger_kernels=true has no effect: liger-kernel has no kernels for models of type gpt2"
    assert applied == []
