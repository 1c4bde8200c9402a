"""The kernels that the learner has on this machine, as the memory estimate counts them."""

from __future__ import annotations

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.model import kernels
from adagrpo_ray.model.kernels import NO_KERNELS, Kernels, kernels_here

LIGER = "learner.liger_kernels=true"


@pytest.mark.parametrize(
    ("settings", "cuda", "triton", "missing", "expected"),
    [
        ([LIGER], False, True, "the learner has no GPU", NO_KERNELS),
        ([], True, True, None, Kernels(flash=True, flex=True)),
        ([LIGER], True, True, None, Kernels(flash=True, flex=True, liger=True)),
        ([LIGER], True, True, "liger-kernel is not installed", Kernels(flash=True, flex=True)),
        ([LIGER], True, False, "Triton is not installed", Kernels(flash=True)),
        (["model.dtype=float32"], True, True, None, Kernels(flex=True)),
    ],
)
def test_kernels_are_those_of_the_machine_and_the_settings(
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    cuda: bool,
    triton: bool,
    missing: str | None,
    expected: Kernels,
) -> None:
    def reason(model_type: str) -> str | None:
        assert model_type == "qwen3"
        return missing

    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr(kernels, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(kernels, "missing", reason)
    assert kernels_here(Config.load(None, settings), "qwen3") == expected
