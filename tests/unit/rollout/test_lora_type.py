"""Types that vLLM's LoRA kernels for GPUs do not take are refused before anything starts."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from adagrpo_ray.cluster.placement import Hardware
from adagrpo_ray.config import Config
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.rollout.architectures import check_lora_type
from adagrpo_ray.training import preflight

FLOAT32 = ("model.dtype=float32", "rollout.lora_mode=adapter")
REFUSAL = r"model\.dtype=float32 with rollout\.lora_mode=adapter: .*bfloat16 or rollout\.lora_mode=merged"


def refused(settings: tuple[str, ...], *, gpu: bool) -> bool:
    config = Config.load(None, list(settings))
    try:
        check_lora_type(config.model, config.rollout, gpu=gpu)
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize("settings", [("model.dtype=float32", "rollout.lora_mode=merged"), ("model.dtype=bfloat16",)])
def test_merged_weights_and_16_bits_are_served_on_gpus(settings: tuple[str, ...]) -> None:
    assert not refused(settings, gpu=True)
    assert not refused(settings, gpu=False)


def test_float32_adapters_are_served_on_cpus_only() -> None:
    config = Config.load(None, list(FLOAT32))
    assert not refused(FLOAT32, gpu=False)
    with pytest.raises(ConfigError, match=REFUSAL):
        check_lora_type(config.model, config.rollout, gpu=True)


def test_the_preflight_refuses_before_it_loads_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(config: Config) -> str:
        raise AssertionError("the model was looked for")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(preflight, "local_hardware", lambda: Hardware(8, 1))
    monkeypatch.setattr(preflight, "resolve_model", load)
    with pytest.raises(ConfigError, match=REFUSAL):
        preflight.check(Config.load("launch/configs/tiny-cpu.yaml", list(FLOAT32)))


def test_the_kernels_of_the_installed_vllm_take_16_bits_only() -> None:
    """The reason for the refusal; if a later vLLM takes float32, it can go."""
    found = find_spec("vllm")
    assert found is not None
    (folder,) = found.submodule_search_locations or ()
    text = Path(folder, "lora", "ops", "triton_ops", "lora_shrink_op.py").read_text()
    asserted = [ast.unparse(node.test) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert)]
    assert any(re.fullmatch(r"inputs\.dtype in \[torch\.float16, torch\.bfloat16\]", test) for test in asserted)
