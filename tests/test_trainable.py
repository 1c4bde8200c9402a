"""What the preflight says of the adapter that a run is to train, before an actor starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adagrpo_ray.config import Config, load_config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.load import load_policy
from adagrpo_ray.preflight import check

TINY = "launch/configs/tiny-cpu.yaml"
QUICK = ("data.train_prompts=8", "data.held_out_prompts=4", "algorithm.prompts_per_step=1")


def settings(*overrides: str) -> Config:
    return load_config(TINY, [*QUICK, *overrides])


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with numbers in it, as PEFT saves it."""
    policy = load_policy(str(tiny_model), settings())
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    folder = tmp_path_factory.mktemp("saved")
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(saved, tmp_path / "adapter")


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return edit


def said(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return edit


def prefixed(prefix: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("base_model.model.", f"base_model.model.{prefix}", 1)] = tensors.pop(name)

    return weights(change)


def without(part: str) -> Callable[[Path], None]:
    return weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name])


def only(*names: str) -> Callable[[Path], None]:
    """An adapter that was made for fewer layers, and says so."""

    def edit(folder: Path) -> None:
        said(target_modules=list(names))(folder)
        weights(lambda t: [t.pop(n) for n in list(t) if not any(f".{name}." in n for name in names)])(folder)

    return edit


def half_and_says_so(folder: Path) -> None:
    said(layers_to_transform=[0, 1])(folder)
    for layer in (2, 3):
        without(f"layers.{layer}.")(folder)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (prefixed("_orig_mod."), r"does not fit model\.path='tiny', which has no linear layer _orig_mod\."),
        (prefixed("module."), r"has no linear layer module\."),
        (prefixed("language_model."), r"has no linear layer language_model\."),
        (without("layers.3."), r"does not fit .* no weights for 7 of the 28 layers"),
        (half_and_says_so, r"holds no weights for 14 of the 28 layers that model\.lora\.targets names \(first: "),
        (
            only("q_proj", "v_proj"),
            r"has weights for q_proj, v_proj, and model\.lora\.targets names q_proj, k_proj, .*; "
            r"set model\.lora\.targets=\[q_proj,v_proj\]",
        ),
        (said(r=8), r"has r=8 and alpha=32, the settings say model\.lora\.r=16"),
        (said(lora_alpha=64), r"has r=16 and alpha=64, the settings say .* model\.lora\.alpha=32"),
    ],
)
def test_an_adapter_that_would_not_be_continued_as_the_settings_say_is_refused(
    adapter: Path, harm: Callable[[Path], None], told: str
) -> None:
    harm(adapter)
    with pytest.raises(ModelError, match=told) as refused:
        check(settings(f"model.adapter={adapter}"))
    assert str(refused.value).startswith(f"model.adapter='{adapter}'")
    assert len(str(refused.value).splitlines()) == 1


def test_an_adapter_that_fits_is_continued_with_the_settings_dropout(adapter: Path, tiny_model: Path) -> None:
    said(lora_dropout=0.5, target_modules=".*(proj)")(adapter)
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
    ("harm", "told"),
    [
        (prefixed("_orig_mod."), r"no place for its 'base_model\.model\._orig_mod\.\S+' \(56 such keys\)"),
        (without("layers.3."), r"it holds no 'base_model\.model\.model\.layers\.3\.\S+' \(14 such keys\)"),
        (without("lora_A"), r"it holds no '\S+lora_A\S+' \(28 such keys\)"),
    ],
)
def test_an_adapter_of_another_file_on_a_node_is_refused_there(
    adapter: Path, tiny_model: Path, harm: Callable[[Path], None], told: str
) -> None:
    harm(adapter)
    with pytest.raises(
        ModelError, match=r"model\.adapter=\S+ does not fit model\.path='tiny' and model\.lora.*" + told
    ):
        load_policy(str(tiny_model), settings(f"model.adapter={adapter}"))


def test_targets_that_the_model_does_not_have_are_refused_before_the_start() -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.targets: tiny has no linear layer 'c_attn'; it has .*q_proj"):
        check(settings("model.lora.targets=[q_proj,c_attn]"))
