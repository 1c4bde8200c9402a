"""Quantised base models are refused with the sign, the reason and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.quantised import check_unquantised

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("content", "sign"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config: fp8"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, r"quantization_config: NVFP4"),
        ({"quantization_config": {}}, r"quantization_config"),
        ({"quantization_config": "fp8"}, r"quantization_config"),
        ({"compression_config": {"format": "int-quantized"}}, r"compression_config"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, r"quantization_config: awq"),
        ({"language_model": {"quantization_config": {"quant_method": "awq"}}}, r"quantization_config: awq"),
    ],
)
def test_keys_of_quantised_models_are_found_in_the_configuration(
    tmp_path: Path, content: dict[str, Any], sign: str
) -> None:
    expected = rf"^model\.path='x' is quantised \({sign}\), and it is trained; give the model that it was made from"
    with pytest.raises(ModelError, match=expected):
        check_unquantised(str(tmp_path), {**LLAMA, **content}, "model.path='x'", "it is trained")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("q_proj.qweight", torch.int32), ("q_proj.weight", torch.float8_e4m3fn), ("w.blocks", torch.uint8)],
)
def test_quantised_weights_are_found_in_the_files(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    norm = {"norm.weight": torch.ones(2), "position_ids": torch.arange(2)}
    save_file(norm, tmp_path / "model.safetensors")
    check_unquantised(str(tmp_path), LLAMA, "model.path='x'", "it is trained")
    save_file({**norm, name: torch.ones(2, 2).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"\({name} in model\.safetensors is of type \w+\)"):
        check_unquantised(str(tmp_path), LLAMA, "model.path='x'", "it is trained")


def test_an_evaluation_that_merges_into_a_quantised_base_is_refused_with_the_other_mode(tmp_path: Path) -> None:
    from adagrpo_ray.evaluation.models import candidates

    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": {"quant_method": "gptq"}}))
    model, adapter = ModelSettings(path=str(tmp_path)), ("adapter", object())
    merged: Any = (model, RolloutSettings(lora_mode="merged"), str(tmp_path))
    expected = r"quantised \(quantization_config: gptq\), and rollout\.lora_mode=merged adds to its weights; "
    with pytest.raises(ModelError, match=expected + r"set rollout\.lora_mode=adapter, or give the model"):
        candidates(*merged, [adapter], True, print)
    assert len(candidates(*merged, [], True, print)) == 1, "vLLM serves the base alone"
