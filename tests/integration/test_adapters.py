"""Reading adapters from folders in PEFT's layout and from checkpoints, and the errors about either."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.config import Config
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.errors import CheckpointError, ModelError
from adagrpo_ray.lora.adapters import RANKS, check_fit, read_adapter, read_settings, served_rank
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.folder import AdapterSettings
from adagrpo_ray.model.pretrained import linear_shapes
from adagrpo_ray.viewer.chat_model import _read
from tests.support.small_adapter import edited, weights

CONFIG = Config.load("launch/configs/tiny-cpu.yaml")
STEP = "checkpoints/step-000004"
TARGETS = CONFIG.model.lora.targets


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with its adapter: PEFT's folder, and a checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    load_policy(str(tiny_model), CONFIG).save_pretrained(folder / "adapter")
    arrays = {name: t.numpy() for name, t in load_file(folder / "adapter/adapter_model.safetensors").items()}
    state = asdict(checkpoint.Progress(4, {}, fixed_settings(CONFIG)))
    checkpoint.save(folder / "checkpoints", 4, {"adapter.safetensors": arrays, "state.json": state}, save_total_limit=1)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")


def test_an_adapter_equals_that_of_its_checkpoint(trained: Path, tiny_model: Path) -> None:
    final, kept = (read_adapter(trained / place) for place in ("adapter", STEP))
    assert (final.r, final.alpha, final.base) == (16, 32.0, str(tiny_model))
    assert (kept.r, kept.alpha, kept.base) == (16, 32.0, "tiny")
    assert final.packed(0, "float32").digest == kept.packed(1, "float32").digest
    assert read_settings(trained / STEP) == AdapterSettings(16, 32.0, "tiny", TARGETS)
    settings = read_settings(trained / "adapter")
    assert (settings.r, settings.alpha, settings.base) == (16, 32.0, str(tiny_model))
    assert set(settings.targets or ()) == set(TARGETS)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")


def flat_b(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: t.flatten() for name, t in tensors.items() if "lora_B" in name})


def poke(tensors: dict[str, torch.Tensor], value: float) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][3, 5] = value


def cast(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    tensors.update({name: t.to(dtype) for name, t in tensors.items()})


def renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for name in list(tensors):
        tensors[name.replace(old, new, 1)] = tensors.pop(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), r"is no folder"),
        (lambda f: (f / "adapter_config.json").unlink(), r"holds no adapter_config\.json"),
        (pickled, r"holds no adapter_model\.safetensors; .*pickled weights are not read"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x"), r"is damaged"),
        (lambda f: (f / "adapter_config.json").write_text("{"), r"is not JSON"),
        (edited(peft_type="IA3"), r"has peft_type='IA3'"),
        (edited(use_rslora=True), r"has use_rslora=True; give plain LoRA"),
        (edited(bias="lora_only"), r"has bias='lora_only'"),
        (edited(layer_replication=[[0, 2]]), r"has layer_replication=\[\[0, 2\]\]; give plain LoRA"),
        (edited(init_lora_weights="pissa_niter_4"), r"has init_lora_weights='pissa_niter_4', which changes the base"),
        (edited(fan_in_fan_out=True), r"has fan_in_fan_out=True"),
        (edited(r="x"), r"has r='x' and alpha=32"),
        (edited(r=True), r"has r=True"),
        (edited(r=0), r"has r=0"),
        (edited(r=None), r"has r=None"),
        (edited(lora_alpha=0), r"has r=16 and alpha=0"),
        (edited(lora_alpha=float("nan")), r"alpha=nan"),
        (edited(lora_alpha=float("inf")), r"alpha=inf"),
        (edited(lora_alpha=10**400), r"alpha=1000"),
        (edited(r=8), r"has r=8, but the ranks of its weights are \[16\]"),
        (weights(lambda t: t.clear()), r"holds no tensors"),
        (weights(lambda t: t.update(head=torch.zeros(1))), r"cannot be used: the adapter has tensors other than pairs"),
        (weights(lambda t: t.pop(next(iter(t)))), r"cannot be used: the adapter has tensors other than pairs"),
        (weights(lambda t: [t.pop(n) for n in list(t) if "lora_B" in n]), r"the adapter has tensors other than pairs"),
        (weights(lambda t: poke(t, float("nan"))), r"q_proj\.lora_A\.weight holds numbers that are not finite"),
        (
            weights(lambda t: poke(t, float("-inf"))),
            r"holds numbers that are not finite; give an adapter",
        ),
        (weights(lambda t: cast(t, torch.int8)), r"lora_A\.weight is of type int8; save it as float32"),
        (weights(lambda t: cast(t, torch.float8_e4m3fn)), r"is of type float8_e4m3fn"),
        (weights(lambda t: renamed(t, "base_model.model.", "")), r"the key 'model\.layers\S+ does not begin with"),
        (
            weights(lambda t: renamed(t, "base_model.", "module.base_model.")),
            r"the key 'module\.\S+ does not begin",
        ),
        (edited(target_modules=["q_proj"]), r"has weights for \S+down_proj, but its target_modules are q_proj"),
        (edited(use_qalora=True), r"has use_qalora=True; give plain LoRA"),
    ],
)
def test_an_adapter_that_is_damaged_or_not_plain_lora_is_refused(
    run: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(run / "adapter")
    with pytest.raises(ModelError, match=message) as refused:
        read_adapter(run / "adapter", "--adapter")
    assert str(refused.value).startswith("--adapter")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["adapter.safetensors", "state.json", "checksums.json"])
def test_a_damaged_checkpoint_is_refused(run: Path, name: str) -> None:
    data = bytearray((run / STEP / name).read_bytes())
    data[-2] ^= 1
    (run / STEP / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="step-000004 is damaged"):
        read_adapter(run / STEP)


def test_a_missing_checkpoint_is_refused(run: Path) -> None:
    for read in (read_adapter, read_settings):
        with pytest.raises(CheckpointError, match="step-000009"):
            read(run / "checkpoints/step-000009")


def test_a_checkpoint_of_unknown_settings_is_refused(run: Path) -> None:
    state = asdict(checkpoint.Progress(5, {}, {"lora.rank": 16}))
    checkpoint.save(run / "checkpoints", 5, {"adapter.safetensors": {}, "state.json": state}, save_total_limit=1)
    with pytest.raises(ModelError, match="has r=None and alpha=None"):
        read_adapter(run / "checkpoints/step-000005")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            weights(lambda t: t.update({n: x[:, :7].clone() for n, x in t.items() if "q_proj.lora_A" in n})),
            r"model\.layers\.0\.self_attn\.q_proj has 128 inputs and 128 outputs there, but the adapter's A is 16 x 7",
        ),
        (
            weights(lambda t: t.update({n.replace("layers.0", "layers.9"): t.pop(n) for n in list(t)})),
            r"which has no linear layer model\.layers\.9\.\S+; it was made for 'Qwen/Another'",
        ),
        (weights(flat_b), r"and its B is \d+; it was made for 'Qwen/Another'"),
        (
            weights(lambda t: renamed(t, "base_model.model.", "base_model.model._orig_mod.")),
            r"which has no linear layer _orig_mod\.model\.layers",
        ),
        (
            weights(lambda t: renamed(t, "base_model.model.", "base_model.model.base_model.model.")),
            r"which has no linear layer base_model\.model\.model\.layers",
        ),
        (
            weights(lambda t: [t.pop(name) for name in list(t) if "layers.1." in name]),
            r"it has no weights for 7 of the 28 layers there that are named down_proj, .*"
            r"\(first: model\.layers\.1\.self_attn\.q_proj\)",
        ),
    ],
)
def test_an_adapter_of_another_model_does_not_fit(
    run: Path, tiny_model: Path, damage: Callable[[Path], Any], message: str
) -> None:
    layers = linear_shapes(str(tiny_model), CONFIG.model)
    check_fit(read_adapter(run / "adapter"), layers, "model.path='tiny'")
    edited(base_model_name_or_path="Qwen/Another")(run / "adapter")
    damage(run / "adapter")
    with pytest.raises(ModelError, match=r"adapter='\S+' does not fit model\.path='tiny'.*" + message):
        check_fit(read_adapter(run / "adapter"), layers, "model.path='tiny'")


def test_served_rank_is_the_next_supported_rank() -> None:
    assert [served_rank(r) for r in (1, 2, 16, 17, 256)] == [1, 8, 16, 32, 256]
    assert served_rank(RANKS[-1] + 1) is None


def test_an_adapter_of_some_layers_fits_if_its_settings_say_so(run: Path, tiny_model: Path) -> None:
    layers = linear_shapes(str(tiny_model), CONFIG.model)
    weights(lambda t: [t.pop(name) for name in list(t) if "layers.1." in name])(run / "adapter")
    with pytest.raises(ModelError, match="it has no weights for"):
        check_fit(read_adapter(run / "adapter"), layers, "model.path='tiny'")
    edited(layers_to_transform=[0, 2, 3])(run / "adapter")
    adapter = read_adapter(run / "adapter")
    check_fit(adapter, layers, "model.path='tiny'")
    assert not [module for module in adapter.pairs if "layers.1." in module]


def test_the_chat_refuses_an_adapter_of_another_model(run: Path) -> None:
    assert _read(run / "adapter", CONFIG).r == 16
    weights(lambda t: t.update({n: x[:, : x.shape[1] // 2].clone() for n, x in t.items() if "lora_A" in n}))(
        run / "adapter"
    )
    with pytest.raises(ModelError, match="does not fit tiny: "):
        _read(run / "adapter", CONFIG)
