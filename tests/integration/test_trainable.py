"""The checks of the adapter that a run is to train, before an actor starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adagrpo_ray.config import Config
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.errors import ModelError
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.lora.trainable import check_trainable
from adagrpo_ray.rollout import architectures
from adagrpo_ray.rollout.architectures import check_served
from adagrpo_ray.training.preflight import check
from tests.support.places import TINY
from tests.support.program import QUICK
from tests.support.small_adapter import edited, weights


def settings(*overrides: str) -> Config:
    return Config.load(TINY, [*QUICK, *overrides])


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with weights other than 0, as PEFT saves it."""
    policy = load_policy(str(tiny_model), settings())
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    folder = tmp_path_factory.mktemp("saved")
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(saved, tmp_path / "adapter")


def prefixed(prefix: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("base_model.model.", f"base_model.model.{prefix}", 1)] = tensors.pop(name)

    return weights(change)


def without(part: str) -> Callable[[Path], None]:
    return weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name])


def only(*names: str) -> Callable[[Path], None]:
    """An adapter for fewer layers, whose settings say so."""

    def edit(folder: Path) -> None:
        edited(target_modules=list(names))(folder)
        weights(lambda t: [t.pop(n) for n in list(t) if not any(f".{name}." in n for name in names)])(folder)

    return edit


def half_with_its_settings(folder: Path) -> None:
    edited(layers_to_transform=[0, 1])(folder)
    for layer in (2, 3):
        without(f"layers.{layer}.")(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (prefixed("_orig_mod."), r"does not fit model\.path='tiny', which has no linear layer _orig_mod\."),
        (prefixed("module."), r"has no linear layer module\."),
        (prefixed("language_model."), r"has no linear layer language_model\."),
        (without("layers.3."), r"does not fit .* no weights for 7 of the 28 layers"),
        (half_with_its_settings, r"has no weights for 14 of the 28 layers that model\.lora\.targets names \(first: "),
        (
            only("q_proj", "v_proj"),
            r"has weights for q_proj, v_proj, but model\.lora\.targets names q_proj, k_proj, .*; "
            r"set model\.lora\.targets=\[q_proj,v_proj\]",
        ),
        (edited(r=8), r"has r=8 and alpha=32, and the settings have model\.lora\.r=16"),
        (edited(lora_alpha=64), r"has r=16 and alpha=64, and the settings have .* model\.lora\.alpha=32"),
    ],
)
def test_an_adapter_that_does_not_match_the_settings_is_refused(
    adapter: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(adapter)
    with pytest.raises(ModelError, match=message) as refused:
        check(settings(f"model.adapter={adapter}"))
    assert str(refused.value).startswith(f"model.adapter='{adapter}'")
    assert len(str(refused.value).splitlines()) == 1


def test_an_adapter_that_fits_continues_with_the_dropout_of_the_settings(adapter: Path, tiny_model: Path) -> None:
    edited(lora_dropout=0.5, target_modules=".*(proj)")(adapter)
    config = settings(f"model.adapter={adapter}", "model.lora.dropout=0.1")
    check(config)
    policy = load_policy(str(tiny_model), config)
    held = load_file(adapter / "adapter_model.safetensors")
    trained = {name.replace(".default.", "."): p for name, p in policy.named_parameters() if p.requires_grad}
    assert trained.keys() == held.keys()
    assert all(torch.equal(trained[name], held[name].to(trained[name].dtype)) for name in held)
    assert {m.p for m in policy.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0} == {0.1}
    assert policy.peft_config["default"].lora_dropout == 0.1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (prefixed("_orig_mod."), r"no place for its 'base_model\.model\._orig_mod\.\S+' \(56 such keys\)"),
        (without("layers.3."), r"it has no 'base_model\.model\.model\.layers\.3\.\S+' \(14 such keys\)"),
        (without("lora_A"), r"it has no '\S+lora_A\S+' \(28 such keys\)"),
    ],
)
def test_an_adapter_of_another_file_on_a_node_is_refused_there(
    adapter: Path, tiny_model: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(adapter)
    with pytest.raises(
        ModelError, match=r"model\.adapter=\S+ does not fit model\.path='tiny' and model\.lora.*" + message
    ):
        load_policy(str(tiny_model), settings(f"model.adapter={adapter}"))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_proj,c_attn", r"has no linear layer 'c_attn'; it has down_proj, .*, v_proj$"),
        ("q_proj,lm_head", r"has no linear layer 'lm_head'; .*v_proj \(the head gets no adapter\)$"),
        ("embed_tokens", r"has no linear layer 'embed_tokens'; it has"),
        ("self_attn.q_proj", r"has no linear layer 'self_attn\.q_proj'; it has"),
        ("all-linear", r"has no linear layer 'all-linear'; it has"),
    ],
)
def test_missing_targets_are_refused_before_the_start(targets: str, message: str) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.targets: tiny " + message):
        check(settings(f"model.lora.targets=[{targets}]"))


SMALL = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize(
    ("kind", "named", "targets", "message"),
    [
        ("GPT2Config", {}, "c_attn", r"has no linear layer 'c_attn'; it has none$"),
        (
            "Glm4MoeConfig",
            {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
            "q_proj,gate_proj,up_proj,down_proj",
            r"has model\.layers\.\d\.mlp\.experts\S*, which .* also names but which is not a linear layer",
        ),
        (
            "Glm4MoeConfig",
            {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
            "gate_proj",
            r"cannot have adapters of gate_proj: Cannot convert PEFT target",
        ),
    ],
)
def test_layers_that_peft_or_vllm_cannot_change_are_refused(
    kind: str, named: dict[str, Any], targets: str, message: str
) -> None:
    import transformers

    found = getattr(transformers, kind)(**{**SMALL, **named})
    with pytest.raises(ModelError, match=r"^model\.lora\.targets: here " + message):
        check_trainable(settings("model.path=here", f"model.lora.targets=[{targets}]").model, "here", found)


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "base")


def of_base(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return edit


def of_eight_bits(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_base(quantization_config={"quant_method": "fp8"}), r"quantization_config: fp8"),
        (of_base(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantization_config: gptq"),
        (of_base(compression_config={"format": "int-quantized"}), r"compression_config"),
        (lambda folder: (folder / "hf_quant_config.json").write_text("{}"), r"hf_quant_config\.json"),
        (lambda folder: (folder / "quant_config.json").write_text("{}"), r"quant_config\.json"),
        (of_eight_bits, r"model\.layers\.1\.mlp\.up_proj\.weight in model\.safetensors is of type I8"),
    ],
)
def test_a_quantised_base_is_refused_before_the_start(base: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(base)
    with pytest.raises(ModelError, match=rf"model\.path='{base}' is quantised \({message}\), and the learner trains"):
        check(settings(f"model.path={base}"))
    check(settings(f"model.path={base}"), training=False)  # without an adapter to merge, vLLM may serve it


def test_a_folder_with_a_gguf_file_gets_a_remedy(base: Path) -> None:
    (base / "model.safetensors").rename(base / "model.gguf")
    with pytest.raises(
        ModelError, match=rf"holds no \*\.safetensors; give its GGUF file: model\.path={base}/model\.gguf$"
    ):
        check(settings(f"model.path={base}"))


@pytest.mark.parametrize(
    ("architecture", "sync", "message"),
    [
        ("XGLMForCausalLM", "adapter", r"XGLMForCausalLM, which the installed vLLM does not serve; use another model"),
        ("XGLMForCausalLM", "merged", r"XGLMForCausalLM, which the installed vLLM does not serve"),
        ("NoSuchForCausalLM", "merged", r"NoSuchForCausalLM, which the installed vLLM does not serve"),
        ("GPT2LMHeadModel", "adapter", r"GPT2LMHeadModel, .* without LoRA adapters; set rollout\.lora_mode=merged"),
    ],
)
def test_models_that_vllm_does_not_serve_are_refused_before_the_start(
    base: Path, architecture: str, sync: str, message: str
) -> None:
    of_base(architectures=[architecture])(base)
    for training in (True, False):
        with pytest.raises(ModelError, match=rf"model\.path='{base}' is a {message}"):
            check(settings(f"model.path={base}", f"rollout.lora_mode={sync}"), training=training)


def served(found: Any, **rollout: Any) -> None:
    check_served(ModelSettings(), RolloutSettings(**rollout), found)


@pytest.mark.parametrize(
    ("architecture", "sync"),
    [
        ("LlamaForCausalLM", "adapter"),
        ("GPT2LMHeadModel", "merged"),
        ("HeliumForCausalLM", "adapter"),  # by Transformers' own class
        ("MixtralForCausalLM", "adapter"),
        ("Gemma3ForConditionalGeneration", "adapter"),
    ],
)
def test_models_that_vllm_serves_are_not_refused(architecture: str, sync: str) -> None:
    found = SimpleNamespace(architectures=[architecture])
    served(found, lora_mode=sync)
    found.architectures = [f"No{architecture}"]
    with pytest.raises(ModelError, match="which the installed vLLM does not serve"):
        served(found, lora_mode=sync)


def test_models_are_not_refused_if_support_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No architecture in config.json, custom code of the model, a plugin of vLLM, or no vLLM."""
    unknown = SimpleNamespace(architectures=["NoSuchForCausalLM"])
    with pytest.raises(ModelError, match="NoSuchForCausalLM"):
        served(unknown)
    served(SimpleNamespace(architectures=None))
    served(SimpleNamespace(**vars(unknown), auto_map={"AutoModelForCausalLM": "own.Model"}))
    monkeypatch.setattr(architectures, "_plugins", lambda: ["one"])
    served(unknown)
    monkeypatch.setattr(architectures, "_plugins", list)
    monkeypatch.setattr(architectures, "registered", dict)
    served(unknown)


def test_the_parsed_registry_equals_that_of_vllm() -> None:
    from vllm.model_executor.models.registry import _VLLM_MODELS

    assert architectures.registered() == _VLLM_MODELS
