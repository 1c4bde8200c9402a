"""The shape of a model, read from its configuration: Qwen3-1.7B by hand, folders, and models that are not here."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import pytest
import transformers

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.shape import read_shape, shape_of
from tests.support.shapes import SHAPE

# A layer: q and o 2048 x 2048 each, k and v 2048 x 1024 each, three times 2048 x 6144: 50,331,648. 28 of them and
# the embeddings, 151,936 x 2048 = 311,164,928:
PARAMETERS = 1_720_451_072


def qwen3() -> transformers.Qwen3Config:
    return transformers.Qwen3Config(
        hidden_size=2048,
        num_hidden_layers=28,
        intermediate_size=6144,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
    )


def config(*overrides: str) -> Config:
    return Config.load(None, list(overrides))


def test_shape_and_parameters_of_a_config() -> None:
    shape = shape_of(qwen3())
    assert shape == SHAPE
    assert shape.parameters == PARAMETERS


def test_untied_embeddings_count_twice() -> None:
    untied = qwen3()
    untied.tie_word_embeddings = False
    assert shape_of(untied).parameters == PARAMETERS + 311_164_928


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("GPT2Config", "the config of gpt2 has no intermediate_size"),
        ("Qwen3MoeConfig", "the shape of a mixture of experts (qwen3_moe) is not known"),
    ],
)
def test_unknown_shapes_are_refused(model: str, message: str) -> None:
    with pytest.raises(ModelError) as refused:
        shape_of(getattr(transformers, model)())
    assert str(refused.value) == message


def test_parameters_of_the_adapter() -> None:
    # A layer's inputs + outputs: q 4096, k 3072, v 3072, o 4096, gate, up and down 8192 each: 38,912. x 16 x 28:
    assert SHAPE.adapter_parameters(16, tuple(SHAPE.linear)) == 17_432_576
    assert SHAPE.adapter_parameters(1, ("q_proj", "v_proj")) == 28 * (4096 + 3072)
    with pytest.raises(ModelError, match=r"model\.lora\.targets 'c_attn'"):
        SHAPE.adapter_parameters(16, ("c_attn",))


@pytest.mark.parametrize(
    ("tensor_parallel", "expected"),
    [
        (1, 114_688),  # 2 x 28 layers x 8 heads x 128 x 2 bytes
        (4, 28_672),
        (16, 14_336),  # eight heads on sixteen GPUs: one on each
    ],
)
def test_kv_bytes_of_a_token(tensor_parallel: int, expected: int) -> None:
    assert SHAPE.kv_token(2, tensor_parallel) == expected


def test_the_shape_comes_from_a_folder(tmp_path: Path) -> None:
    qwen3().save_pretrained(tmp_path)
    assert read_shape(config(f"model.path={tmp_path}")) == SHAPE


@pytest.mark.parametrize("content", [None, "{"])
def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as refused:
        read_shape(config(f"model.path={tmp_path}"))
    assert str(refused.value) == f"{tmp_path} has no config.json that can be read"


def test_a_hub_name_is_looked_up_in_the_cache_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ModelError) as refused:
        read_shape(config("model.path=no/such-model"))
    assert str(refused.value) == "no/such-model is not on this machine yet"


def test_the_tiny_model_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ModelError) as refused:
        read_shape(config("model.path=tiny"))
    assert str(refused.value) == "the tiny model is built on first use"
    assert not list(tmp_path.iterdir())
