"""GGUF files as base models: their conversion, and damaged or hostile files."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock

from adagrpo_ray.cards.sections import base_in_words, base_model
from adagrpo_ray.cards.usage import use_adapter
from adagrpo_ray.config import Config
from adagrpo_ray.config.data import DataSettings
from adagrpo_ray.data.completion_text import stop_ids
from adagrpo_ray.errors import ModelError
from adagrpo_ray.export.base import find_base
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model import gguf_header
from adagrpo_ray.model.gguf_file import find_gguf, is_gguf
from adagrpo_ray.model.gguf_header import read_header
from adagrpo_ray.model.gguf_model import dequantised, read_origin
from adagrpo_ray.model.gguf_rope import llama3_factors
from adagrpo_ray.model.identity import identify
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.model.pretrained import load_tokenizer, read_model_config, resolve_model
from adagrpo_ray.model.quantised import check_unquantised
from adagrpo_ray.model.shape import read_shape, shape_of
from tests.support.gguf_files import HEADS, HIDDEN, LAYERS, TOKENS, Recipe, llama, patched, place_of, qwen3, write_gguf

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.Q8_0.gguf")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adagrpo_ray"


@pytest.fixture
def file(whole_file: Path, tmp_path: Path, cache: Path) -> Path:
    """A copy of the file, to be damaged."""
    return Path(shutil.copy(whole_file, tmp_path / "small.Q8_0.gguf"))


def settings(path: Path | str, **data: Any) -> Config:
    return Config.model_validate({"model": {"path": str(path), "dtype": "float32"}, "data": data})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 43)[None]).logits


# The conversion of a file


def test_float32_weights_are_read_back_exactly(tmp_path: Path, cache: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = dequantised(str(write_gguf(tmp_path / "exact.gguf", Recipe(type="F32"))))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    expected = llama().state_dict()
    assert set(model.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert torch.equal(logits(model), logits(llama()))


def test_other_architecture_is_read_as_by_transformers(tmp_path: Path, cache: Path) -> None:
    from transformers import AutoModelForCausalLM

    values = {"qwen3.rope.dimension_count": 128, "qwen3.attention.key_length": 128, "tokenizer.ggml.pre": "qwen2"}
    recipe = Recipe(type="F32", architecture="qwen3", values=values, model=qwen3())
    config = settings(write_gguf(tmp_path / "qwen3.gguf", recipe))
    model = AutoModelForCausalLM.from_pretrained(resolve_model(config))
    assert torch.equal(logits(model), logits(qwen3()))
    assert read_shape(config) == shape_of(qwen3().config)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_each_weight_equals_dequantisation_by_gguf(tmp_path: Path, cache: Path, kind: str) -> None:
    from safetensors.torch import load_file

    file = write_gguf(tmp_path / f"{kind}.gguf", Recipe(type=kind))
    weights = load_file(dequantised(str(file)) / "model.safetensors")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for theirs, ours in (("token_embd", "embed_tokens"), ("blk.1.ffn_up", "layers.1.mlp.up_proj")):
        tensor = stored[f"{theirs}.weight"]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        assert np.array_equal(weights[f"model.{ours}.weight"].numpy(), expected)


def test_file_is_dequantised_once_with_progress_lines(
    file: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = dequantised(str(file))
    output = capfd.readouterr().err
    lines = [line for line in output.splitlines() if "Q8_0" in line]
    assert lines[0] == "dequantising small.Q8_0.gguf from Q8_0 (some tensors F32) to float32, once"
    assert lines[1].startswith(
        f"dequantised small.Q8_0.gguf from Q8_0 (some tensors F32) to float32, into {folder} in "
    )
    assert len(lines) == 2
    assert "it/s" not in output  # a bar of Transformers
    assert dequantised(str(file)) == folder
    assert capfd.readouterr().err == ""
    assert sorted(path.name for path in cache.iterdir()) == [folder.name, f"{folder.name}.lock"]
    elsewhere = Path(shutil.move(file, file.with_name("renamed.gguf")))
    assert dequantised(str(elsewhere)) == folder  # the folder depends on the content
    assert dequantised(str(write_gguf(file, Recipe(seed=1)))) != folder


def test_terminal_shows_progress_bar(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    dequantised(str(file))
    output = capfd.readouterr().err
    assert "100%" in output
    assert "dequantised small.Q8_0.gguf from Q8_0" in output


def test_tokenizer_template_and_end_tokens_are_kept(tmp_path: Path, cache: Path) -> None:
    recipe = Recipe(values={"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2})
    folder = dequantised(str(write_gguf(tmp_path / "x.gguf", recipe)))
    tokenizer = load_tokenizer(str(folder), settings(folder).model, DataSettings())
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (TOKENS[1], TOKENS[0], TOKENS[0])
    assert tokenizer.chat_template == recipe.template
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert stop_ids(tokenizer) == [0, 2]
    assert "the" in tokenizer.convert_tokens_to_string(tokenizer.tokenize("the"))
    assert tokenizer.decode(tokenizer.encode("né 12 <|im_end|>")) == "né 12 <|im_end|>"


@pytest.mark.parametrize(
    ("model", "pre", "add_bos", "adds"),
    [
        ("gpt2", "smollm", None, False),
        ("gpt2", "llama-bpe", None, True),
        ("gpt2", "llama-bpe", False, False),
        ("gpt2", "default", True, True),
    ],
)
def test_text_begins_with_bos_if_metadata_require_it(
    tmp_path: Path, cache: Path, model: str, pre: str, add_bos: bool | None, adds: bool
) -> None:
    keys = {"model": model, "pre": pre, "add_bos_token": add_bos}
    recipe = Recipe(values={f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    folder = dequantised(str(write_gguf(tmp_path / "x.gguf", recipe)))
    tokenizer = load_tokenizer(str(folder), settings(folder).model, DataSettings())
    plain = tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.encode("the") == ([1, *plain] if adds else plain)


def test_digits_are_split_as_metadata_require(tmp_path: Path, cache: Path) -> None:
    """Spaces before a digit are one piece only if digits are split first."""
    pieces = {}
    for pre in ("smollm", "default"):
        folder = dequantised(str(write_gguf(tmp_path / f"{pre}.gguf", Recipe(values={"tokenizer.ggml.pre": pre}))))
        tokenizer = load_tokenizer(str(folder), settings(folder).model, DataSettings())
        backend: Any = tokenizer.backend_tokenizer
        pieces[pre] = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("a  12")]
    assert pieces == {"smollm": ["a", "ĠĠ", "1", "2"], "default": ["a", "Ġ", "Ġ12"]}


def test_run_uses_gguf_file_like_other_models(file: Path) -> None:
    config = settings(file)
    folder = resolve_model(config)
    found = read_model_config(folder, config.model)
    check_unquantised(folder, found.to_dict(), config.model.path, "")
    assert found.get_text_config().max_position_embeddings == 512
    policy = load_policy(folder, config)
    assert policy.peft_config["default"].base_model_name_or_path == str(file)
    assert logits(policy).shape == (1, 40, len(TOKENS))


def test_memory_is_estimated_from_header_only(file: Path, cache: Path) -> None:
    shape = read_shape(settings(file))
    assert not cache.exists()
    assert shape == shape_of(llama().config)
    assert (shape.layers, shape.hidden, shape.head_dim, shape.tied) == (LAYERS, HIDDEN, HIDDEN // HEADS, False)


def test_card_names_file_and_hash(file: Path) -> None:
    import hashlib

    config = settings(file)
    base = identify(str(file), resolve_model(config))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (base.on_hub, base.license, base.revision) == (False, "apache-2.0", None)
    assert base.gguf is not None
    assert (base.gguf.name, base.gguf.digest) == ("small.Q8_0.gguf", digest)
    assert base_in_words(base) == f"the model `small.Q8_0.gguf` (SHA-256 `{digest}`)"
    text = base_model(base) + use_adapter(config, base)
    assert "GGUF, Q8_0 (some tensors F32), dequantised to float32" in text
    assert "resolve_model(Config.load(" in text
    assert str(file.parent) not in text  # neither its folder nor the cache


def test_export_finds_base_by_its_gguf_file(file: Path) -> None:
    folder = Path(resolve_model(settings(file)))
    card = f"---\nadagrpo_ray:\n  base_fingerprint: {identify(str(file), str(folder)).fingerprint}\n---\n"
    for given, config, named in ((str(file), None, ""), (None, settings(file), ""), (None, None, str(file))):
        base, found = find_base(given, config, named, card)
        assert found == folder
        assert base.gguf is not None
    other = write_gguf(file.with_name("other.gguf"), Recipe(seed=1))
    with pytest.raises(ModelError, match=r"--base='.*other\.gguf' is not the model that the adapter was trained on"):
        find_base(str(other), None, "", card)


def test_other_node_dequantises_its_copy_of_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ModelFiles(resolve_model(settings(file)), gguf=str(file))
    assert files.here() == files.path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    gone = ModelFiles(files.path.replace("/cache/", "/nowhere/"), gguf=files.gguf)
    there = Path(gone.here())
    assert (there.name, there.is_relative_to(tmp_path / "there")) == (Path(files.path).name, True)
    write_gguf(file, Recipe(seed=1))
    with pytest.raises(
        ModelError, match=r"on node \S+ model\.path='.*' is not the file of the machine that started the run"
    ):
        gone.here()
    file.unlink()
    with pytest.raises(ModelError, match=r"on node \S+: model\.path='.*' cannot be opened on this machine"):
        gone.here()


def test_llama_3_scaling_is_restored(tmp_path: Path, cache: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    factors = np.array(llama3_factors(500000.0, HIDDEN // HEADS, 32.0), np.float32)
    assert (factors.min(), factors.max()) == (1.0, 32.0)
    recipe = Recipe(values={"llama.rope.freq_base": 500000.0}, tensors={"rope_freqs.weight": factors})
    folder = dequantised(str(write_gguf(tmp_path / "x.gguf", recipe)))
    rope = AutoConfig.from_pretrained(folder).rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("llama3", 32.0, 500000.0)
    frequencies = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq.numpy()
    plain = 500000.0 ** (-np.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS))
    assert np.allclose(frequencies, plain / factors, rtol=1e-5)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(tensors={"rope_freqs.weight": np.full(HIDDEN // HEADS // 2, 3.0, np.float32)}),
        Recipe(values={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}),
    ],
)
def test_other_rope_scaling_is_refused(tmp_path: Path, cache: Path, recipe: Recipe) -> None:
    with pytest.raises(ModelError, match=r"scales its rotary embedding.*which is lost when Transformers reads a GGUF"):
        dequantised(str(write_gguf(tmp_path / "x.gguf", recipe)))


# Names of files


def test_names_of_gguf_files_are_recognised(tmp_path: Path) -> None:
    assert [is_gguf(name) for name in ("x.gguf", "a/B.GGUF", "package:a/b.gguf", "package:a")] == [True] * 4
    (tmp_path / "folder.gguf").mkdir()
    assert [is_gguf(name) for name in ("tiny", "Qwen/Qwen3-0.6B-GGUF", str(tmp_path / "folder.gguf"))] == [False] * 3


def test_file_of_package_is_found_without_import(
    whole_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "brings_a_model"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    shutil.copy(whole_file, package / "data" / "small.gguf")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    name = "package:brings_a_model/data/small.gguf"
    folder = Path(resolve_model(settings(name)))
    origin = read_origin(folder)
    assert origin is not None
    assert origin.name == name
    assert base_in_words(identify(name, str(folder))).startswith(f"the model `{name}` (SHA-256 ")
    with pytest.raises(ModelError, match=r"holds no 'x\.gguf'; it holds data/small\.gguf$"):
        find_gguf("package:brings_a_model/x.gguf")
    with pytest.raises(ModelError, match=r"^--base='package:brings_a_model/data' is a folder; give the \.gguf file"):
        find_gguf("package:brings_a_model/data", "--base")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("package:adagrpo_ray/../../y.gguf", "leaves the package 'adagrpo_ray'; give a path inside it"),
        ("package:adagrpo_ray//etc/x.gguf", "leaves the package 'adagrpo_ray'"),
        ("package:adagrpo_ray/model/../../x.gguf", "leaves the package 'adagrpo_ray'"),
        ("package:adagrpo_ray/./x.gguf", "leaves the package 'adagrpo_ray'"),
        ("package:adagrpo_ray/model.gguf", "holds no 'model.gguf'; it holds no .gguf file, give another package"),
        ("package:adagrpo_ray", "is no file of a package; write package:IMPORT_NAME/path/in/it.gguf"),
        ("package:../x/y.gguf", "is no file of a package; write package:IMPORT_NAME"),
        ("package:a.b/y.gguf", "is no file of a package"),
        (
            "package:no_such_package/y.gguf",
            "no package 'no_such_package' in this environment; install the distribution",
        ),
        ("package:no_such_package/y.gguf", "pip install no-such-package"),
        ("package:json.tool/y.gguf", "is no file of a package"),
        ("package:sys/y.gguf", "there is no package 'sys'"),
        (f"package:adagrpo_ray/{'x' * 300}.gguf", "holds no 'xxx"),
        ("no/such.gguf", "cannot be opened on this machine (No such file or directory); give the path of a .gguf file"),
        (f"{'x' * 300}.gguf", "cannot be opened on this machine (File name too long)"),
    ],
)
def test_name_of_missing_file_is_refused(cache: Path, name: str, expected: str) -> None:
    with pytest.raises(ModelError, match=r"^model\.path=") as caught:
        resolve_model(settings(name))
    assert expected in str(caught.value)
    assert not cache.exists()


def test_irregular_file_is_refused(tmp_path: Path, cache: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelError, match=r"pipe\.gguf' is no regular file; give a \.gguf file"):
        resolve_model(settings(tmp_path / "pipe.gguf"))


def test_error_without_package_gguf_names_extra(file: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(
        "adagrpo_ray.model.gguf_model.find_spec", lambda name: None if name == "gguf" else find_spec(name)
    )
    with pytest.raises(ModelError, match=r"needs the package gguf, .* pip install 'adagrpo_ray\[gguf\]'$"):
        resolve_model(settings(file))
    read_shape(settings(file))  # --dry-run needs none
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    folder = resolve_model(settings(file))
    monkeypatch.setattr("adagrpo_ray.model.gguf_model.find_spec", lambda _: None)
    assert resolve_model(settings(file)) == folder  # a folder that exists needs none either


# Hostile files


def test_block_sizes_equal_those_of_gguf() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert theirs == gguf_header.TYPES


def cut(share: float) -> Callable[[Path], None]:
    return lambda file: os.truncate(file, int(file.stat().st_size * share))


def at(place: int, form: str, value: int) -> Callable[[Path], None]:
    return lambda file: patched(file, place, form, value)


def after(text: str, further: int, form: str, value: int) -> Callable[[Path], None]:
    return lambda file: patched(file, place_of(file, text) + further, form, value)


# After the name of a tensor come the number of its dimensions, two of them, its type and its offset.
DIMENSIONS, FIRST, TYPE, OFFSET = 0, 4, 20, 24
TENSOR, KEY = "blk.1.ffn_up.weight", "llama.context_length"


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda file: file.write_bytes(b""), "it is too short"),
        (lambda file: file.write_bytes(b"GGUF"), "it is too short"),
        (at(0, "<I", 0x04034B50), "it begins with b'PK"),
        (at(4, "<I", 3 << 24), "it is of version 50331648, and versions 2 and 3 are read"),
        (at(8, "<Q", 2**63), "it claims 9223372036854775808 tensors"),
        (at(8, "<Q", 0), "it claims 0 tensors"),
        (at(8, "<Q", 2**16), "claims 0 dimensions"),
        (at(16, "<Q", 2**60), "and 1152921504606846976 entries of metadata"),
        (at(16, "<Q", 2**16), ""),
        (at(24, "<Q", 2**62), "claims 4611686018427387904 more bytes"),
        (cut(0.1), "cut off"),
        (cut(0.5), "cut off"),
        (lambda file: os.truncate(file, file.stat().st_size - 4096), "cut off"),
        (after(KEY, 0, "<I", 77), f"{KEY!r} has a value of the unknown type 77"),
        (after("tokenizer.ggml.tokens", 8, "<Q", 2**61), "claims 2305843009213693952 elements"),
        (after("tokenizer.ggml.tokens", 8, "<Q", 2**22), ""),
        (after("tokenizer.ggml.tokens", 16, "<Q", 5000), "of a list of texts has 5000 bytes"),
        (after("tokenizer.ggml.token_type", 8, "<Q", 2**23), "cut off"),
        (after("tokenizer.ggml.token_type", 4, "<I", 9), "has elements of the unknown type 9"),
        (after(TENSOR, DIMENSIONS, "<I", 2**31), f"the tensor {TENSOR!r} claims 2147483648 dimensions"),
        (after(TENSOR, FIRST, "<Q", 2**62), "it is cut off"),
        (after(TENSOR, FIRST, "<Q", 0), "has the shape (0, 96)"),
        (after(TENSOR, FIRST, "<Q", 33), "has the shape (33, 96)"),
        (after(TENSOR, TYPE, "<I", 4), "has the unknown type 4"),
        (after(TENSOR, OFFSET, "<Q", 2**63 - 32), "it is cut off"),
        (after(TENSOR, OFFSET, "<Q", 7), "and the offset 7"),
        (after(TENSOR, OFFSET, "<Q", 0), "shares bytes with another one"),
    ],
)
def test_file_with_false_sizes_is_refused(file: Path, cache: Path, harm: Callable[[Path], None], expected: str) -> None:
    harm(file)
    with pytest.raises(ModelError, match=r"^model\.path='.*small.*' .* copy or download it again$") as caught:
        resolve_model(settings(file))
    assert expected in str(caught.value)
    assert not cache.exists()
    with pytest.raises(ModelError, match="copy or download it again"):
        read_shape(settings(file))


def test_header_cut_at_any_byte_is_refused(file: Path) -> None:
    content = file.read_bytes()
    header = min(tensor.begin for tensor in read_header(file, "it").tensors)
    for length in [*range(0, 600), *range(600, header, 97), header]:
        file.write_bytes(content[:length])
        with pytest.raises(ModelError, match="copy or download it again"):
            read_header(file, "it")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(values={"llama.block_count": 2**31}), r"claims llama\.block_count=2147483648, and it holds 21 tensors"),
        (Recipe(values={"llama.block_count": 3}), r"describe a model of \d+ parameters, and its tensors hold \d+"),
        (Recipe(values={"llama.embedding_length": 2**20}), r"describe a model of \d+ parameters"),
        (Recipe(values={"llama.vocab_size": 2**30}), r"describe a model of \d+ parameters"),
        (Recipe(values={"llama.attention.head_count": 0}), r"cannot be built as a model|cannot read from GGUF"),
        (Recipe(values={"llama.embedding_length": None}), r"describe a model of|cannot be dequantised"),
        (Recipe(tensors={"blk.1.ffn_up.weight": None}), r"describe a model of \d+ parameters"),
        (Recipe(architecture="clip"), r"is of the architecture 'clip', which Transformers cannot read from GGUF"),
        (Recipe(values={"split.count": 3}), r"is one of 3 parts of a model; join them with llama-gguf-split --merge"),
        (Recipe(values={"tokenizer.ggml.model": "rwkv"}), r"has no tokenizer that Transformers can build"),
        (Recipe(values={"tokenizer.ggml.eos_token_id": 2**31}), r"has no tokenizer that Transformers can build"),
        (Recipe(values={"general.alignment": 24}), r"general\.alignment=24 is no power of two"),
        (
            Recipe(type="F32", tensors={"output_norm.weight": np.full(HIDDEN, np.nan, np.float32)}),
            r"model\.norm\.weight has numbers that are not finite; copy or download it again",
        ),
    ],
)
def test_metadata_that_contradict_tensors_are_refused(
    tmp_path: Path, cache: Path, recipe: Recipe, expected: str
) -> None:
    aligned = recipe.values.pop("general.alignment", None)
    file = write_gguf(tmp_path / "x.gguf", recipe)
    if aligned is not None:  # gguf writes no wrong one
        patched(write_gguf(file, Recipe(values={"general.alignment": 32})), 0, "<I", struct.unpack("<I", b"GGUF")[0])
        patched(file, place_of(file, "general.alignment") + 4, "<I", aligned)
    with pytest.raises(ModelError, match=expected) as caught:
        resolve_model(settings(file))
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in cache.glob("*")] in ([], [".lock"])


def test_conversion_needs_room_on_disk(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(ModelError, match=r"takes 0\.0 GiB in float32, and .* has 0\.0 GiB free; make room, or set XDG"):
        resolve_model(settings(file))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(ModelError, match=r"of memory to dequantise, and 0\.0 GiB are free; make room"):
        resolve_model(settings(file))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_failed_conversion_leaves_cache_unchanged(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adagrpo_ray.model.gguf_model.save_model", full)
    with pytest.raises(ModelError, match=r"cannot write its weights to .*No space left on device; set XDG_CACHE_HOME"):
        resolve_model(settings(file))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_folder_made_by_other_process_is_used(file: Path, cache: Path) -> None:
    """A folder that exists after waiting for the lock is not made again."""
    from threading import Thread

    folder = dequantised(str(file))
    aside = folder.rename(folder.with_name("aside"))
    found: list[Path] = []
    with FileLock(f"{folder}.lock"):
        waiting = Thread(target=lambda: found.append(dequantised(str(file))))
        waiting.start()
        waiting.join(2.0)
        assert waiting.is_alive()
        stamp = (aside.rename(folder) / "config.json").stat().st_mtime_ns
    waiting.join()
    assert found == [folder]
    assert (folder / "config.json").stat().st_mtime_ns == stamp
