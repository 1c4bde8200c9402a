"""launch/export.py: merged models, the check, refused adapters and bases, and model cards."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adagrpo_ray.export import exporting, merge
from adagrpo_ray.export.check import Comparison
from adagrpo_ray.lora.adapters import read_adapter
from adagrpo_ray.model.identity import front_matter
from adagrpo_ray.rollout.engine import RolloutEngine
from adagrpo_ray.storage import places as storage
from adagrpo_ray.types import GenerationRequest, SamplingParams
from tests.support.scripts import script
from tests.support.trained import CONFIG, make_run

Exported = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", tiny_model)


@pytest.fixture
def exported(capsys: pytest.CaptureFixture[str]) -> Exported:
    """Runs launch/export.py: its exit status, output and errors."""

    program = script("export")  # before a test changes the current folder

    def export(*arguments: Any) -> tuple[int, str, str]:
        code = program.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return export


TEXT = torch.arange(10, 22)


def logits(folder: Path, adapter: Path | None = None, text: torch.Tensor = TEXT) -> torch.Tensor:
    """The logits of `text` [T] in float32: [1, T, vocabulary]."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(text[None]).logits
    return found


def test_merged_model_has_the_logits_of_the_adapter(
    exported: Exported, run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    code, output, errors = exported(run, "--out", tmp_path / "model")
    assert code == 0, errors
    assert "merging 28 weights of run into tiny" in output
    assert "on 4 prompts of arithmetic" in output
    expected = logits(tiny_model, run / "adapter")
    assert (expected - logits(tiny_model)).abs().max() > 0.1
    torch.testing.assert_close(logits(tmp_path / "model"), expected, atol=1e-4, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_export_has_tokenizer_template_and_card(
    exported: Exported, run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    assert exported(run, "--out", tmp_path / "model", "--no-check")[0] == 0
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "model", tiny_model))
    messages = [{"role": "user", "content": "1+1"}]
    assert ours.apply_chat_template(messages, tokenize=False) == theirs.apply_chat_template(messages, tokenize=False)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {path.name for path in tiny_model.iterdir()} | {"README.md"}
    card = (tmp_path / "model" / "README.md").read_text()
    assert front_matter(card)["library_name"] == "transformers"
    assert "# run" in card
    assert "It was not checked." in card
    assert {oct(path.stat().st_mode & 0o444) for path in (tmp_path / "model").iterdir()} == {"0o444"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_sets_the_type_of_weights_and_config(exported: Exported, run: Path, tmp_path: Path, dtype: str) -> None:
    code, _, errors = exported(run, "--out", tmp_path / "model", "--dtype", dtype)
    assert code == 0, errors
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["dtype"], config.get("torch_dtype")) == (dtype, None)


def test_weights_without_an_adapter_are_unchanged(
    exported: Exported, run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert exported(run, "--out", tmp_path / "model", "--no-check")[0] == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "model"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj.weight" in name}


def test_large_model_is_split_into_files(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    planned = merge.plan(tiny_model, read_adapter(run / "adapter"), None, shard_bytes=2**20)
    assert len(planned.shards) > 2
    assert planned.peak_bytes < 2 * 2**20 < planned.bytes
    out = shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    merge.write(planned, out)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(planned.shards):05d}.safetensors"
    assert max(path.stat().st_size for path in out.glob("*.safetensors")) < 2**20 + 10_000
    torch.testing.assert_close(logits(out), logits(tiny_model, run / "adapter"), atol=1e-4, rtol=0)


def test_adapter_folder_is_exported_with_and_without_a_base_option(
    exported: Exported, run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(run / "adapter", tmp_path / "mine")
    code, output, errors = exported(adapter, "--out", tmp_path / "one")
    assert code == 0, errors
    assert "prompts of its own, since the run's data are not available" in output
    shutil.copytree(tiny_model, tmp_path / "base")
    code, _, errors = exported(adapter, "--base", tmp_path / "base", "--out", tmp_path / "two")
    assert code == 0, errors
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_run_at_a_url_is_exported(exported: Exported, run: Path, tmp_path: Path) -> None:
    storage.push(run, "memory://bucket/runs/far", storage.below(run))
    code, output, errors = exported("memory://bucket/runs/far", "--out", tmp_path / "model")
    assert code == 0, errors
    assert "merging 28 weights of far into tiny" in output
    assert (tmp_path / "model" / "model.safetensors").is_file()
    code, _, errors = exported("nosuch://bucket/run", "--out", tmp_path / "other")
    assert (code, errors[:48]) == (2, "error: RUN|ADAPTER='nosuch://bucket/run': Protoc")


def test_url_as_out_is_refused(exported: Exported, run: Path) -> None:
    code, _, errors = exported(run, "--out", "s3://bucket/model")
    assert (code, errors) == (2, "error: --out s3://bucket/model is a URL; give a folder of this machine\n")


def test_errors_of_a_run_at_a_url_name_the_url(exported: Exported, run: Path, tmp_path: Path) -> None:
    url = "memory://bucket/runs/broken"
    storage.push(run, url, storage.below(run))
    storage.leave(url, "adapter/adapter_model.safetensors", "x")
    storage.leave(url, "checkpoints/step-000004/checksums.json", "x")
    for place, message in (
        (url, f"{url}/adapter/adapter_model.safetensors is damaged"),
        (f"{url}/adapter", f"{url}/adapter/adapter_model.safetensors is damaged"),
        (f"{url}/checkpoints/step-000004", f"the checkpoint {url}/checkpoints/step-000004 is damaged"),
    ):
        code, _, error = exported(place, "--out", tmp_path / "model")
        assert (code, message in error) == (2, True), error


def test_base_in_the_cache_of_the_hub_needs_no_network(
    exported: Exported, run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has the files that training uses, without the card and the licence of the model."""
    cache, commit = tmp_path / "hub", "c" * 40
    shutil.copytree(tiny_model, cache / "models--me--base" / "snapshots" / commit)
    (cache / "models--me--base" / "refs").mkdir()
    (cache / "models--me--base" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(cache))
    code, _, errors = exported(run, "--base", "me/base", "--out", tmp_path / "model", "--no-check")
    assert code == 0, errors
    head = front_matter((tmp_path / "model" / "README.md").read_text())
    assert (head["base_model"], head["adagrpo_ray"]["base_revision"]) == ("me/base", commit)


# --- the check ---


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors that the merge writes."""
    merged = merge._merged

    def spoiled(*arguments: Any) -> dict[str, torch.Tensor]:
        tensors = merged(*arguments)
        change(tensors)
        return tensors

    monkeypatch.setattr(merge, "_merged", spoiled)


NAME = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[NAME][3].zero_(), f"1 weights are not the sum of base and adapter (first: {NAME})"),
        (lambda t: t["model.embed_tokens.weight"].mul_(1.2), "and may differ by 0.001 ("),
        (lambda t: t["model.norm.weight"].fill_(float("nan")), "PEFT's own merge by nan"),
    ],
)
def test_corrupted_merge_is_refused_and_removed(
    exported: Exported, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    spoil(monkeypatch, change)
    code, _, error = exported(run, "--out", tmp_path / "model")
    assert code == 2
    assert error.splitlines()[-1].startswith("error: the merged model differs from the adapter, nothing is saved")
    assert message in error
    assert list(tmp_path.iterdir()) == []


GOOD: dict[str, Any] = {
    **{"mean": 1e-4, "largest": 1e-3, "rounding": 0.05, "effect": 0.5, "agree": 1.0},
    "wrong_weights": (),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"rounding": 0.02, "effect": 0.02}, "rounding undoes the effect of the adapter; use --dtype float32"),
        ({"rounding": 0.02, "effect": 0.021}, None),
        ({"rounding": 1e-6, "effect": 0.0}, None),  # an adapter that was not trained
        ({"rounding": 2.0, "effect": 5.0}, None),  # an adapter that changes much
        ({"mean": 2e-3}, "and may differ by 0.001 ("),
        ({"mean": float("nan")}, "and may differ by 0.001 ("),
        ({"largest": 0.6}, "(0.6 at most), and may differ by 0.001 (0.02 at most)"),
        ({"wrong_weights": ("a", "b")}, "2 weights are not the sum of base and adapter (first: a)"),
    ],
)
def test_bounds_of_the_check(changes: dict[str, Any], message: str | None) -> None:
    problem = Comparison("bfloat16", 4, 100, **(GOOD | changes)).problem
    assert (problem is None) if message is None else (message in (problem or ""))


def test_costly_rounding_gives_a_warning() -> None:
    costly = Comparison("bfloat16", 4, 100, **(GOOD | {"rounding": 0.3})).warning
    assert costly is not None
    assert costly.startswith("rounding to bfloat16 changes 60% as much as the adapter does; --dtype float32")
    assert Comparison("bfloat16", 4, 100, **GOOD).warning is None
    assert Comparison("bfloat16", 4, 100, **(GOOD | {"rounding": 1e-5, "effect": 0.0})).warning is None


# --- what is refused ---


def edited(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def cut_rows(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({n: t[:, :-1].clone() if "lora_A" in n else t for n, t in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: shutil.rmtree(r), "does not exist or is empty"),
        (lambda r: shutil.rmtree(r / "adapter"), "is a run without an adapter/ so far"),
        (lambda r: (r / "config.yaml").unlink() or shutil.rmtree(r / "adapter") or (r / "x").touch(), "no run folder"),
        (lambda r: (r / "adapter/adapter_model.safetensors").unlink(), "adapter' holds no adapter_model.safetensors"),
        (
            lambda r: (r / "adapter/adapter_model.safetensors").rename(r / "adapter/adapter_model.bin"),
            "holds no adapter_model.safetensors; give a folder written by save_pretrained (pickled weights",
        ),
        (lambda r: (r / "adapter/adapter_model.safetensors").write_bytes(b"x" * 99), "is damaged"),
        (lambda r: edited(r / "adapter/adapter_config.json", peft_type="IA3"), "peft_type='IA3'"),
        (lambda r: edited(r / "adapter/adapter_config.json", use_dora=True), "use_dora=True"),
        (lambda r: edited(r / "adapter/adapter_config.json", r=8), "has r=8, but the ranks of its weights are [16]"),
        (lambda r: edited(r / "adapter/adapter_config.json", lora_alpha="x"), "has r=16 and alpha='x'"),
        (lambda r: edited(r / "adapter/adapter_config.json", bias="all"), "bias='all'"),
        (lambda r: edited(r / "adapter/adapter_config.json", fan_in_fan_out=True), "fan_in_fan_out=True"),
        (lambda r: cut_rows(r / "adapter"), "(--base): model.layers.0.mlp.down_proj has 256 inputs"),
    ],
)
def test_adapters_that_cannot_be_exported_are_refused(
    exported: Exported, run: Path, tmp_path: Path, break_it: Callable[[Path], Any], message: str
) -> None:
    there = shutil.copytree(run, tmp_path / "run")
    break_it(there)
    code, _, error = exported(there, "--out", tmp_path / "model")
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not [path for path in tmp_path.iterdir() if path != there]


def test_error_for_a_running_run_names_its_newest_checkpoint(exported: Exported, run: Path, tmp_path: Path) -> None:
    """The error names the newest complete checkpoint, not one that is being written or removed."""
    there = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("adapter"))
    for name in ("step-000002", "step-000010", "step-000011.part"):
        (there / "checkpoints" / name).mkdir(parents=True)
        (there / "checkpoints" / name / "checksums.json").touch()
    code, _, error = exported(there, "--out", tmp_path / "model")
    assert code == 2
    assert error.endswith(f"without an adapter/ so far; give its newest checkpoint, {there}/checkpoints/step-000010\n")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("/no/such/folder", "the base model --base='/no/such/folder' is no folder here"),
        ("nobody/nothing", "--base='nobody/nothing' is neither a folder here nor available on the Hub"),
        ("empty", "--base='empty' holds no config.json"),
        ("other", "--base='other' is not the model that the adapter was trained on"),
        ("pickled", "--base='pickled' holds no *.safetensors"),
        (
            "quantised",
            "--base='quantised' is quantised (quantization_config: gptq), and a merge adds to its weights; give",
        ),
    ],
)
def test_bases_that_cannot_be_used_are_refused(
    exported: Exported,
    run: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    other = shutil.copytree(tiny_model, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    pickled = shutil.copytree(tiny_model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    quantised = shutil.copytree(tiny_model, tmp_path / "quantised")
    edited(quantised / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    code, _, error = exported(run, "--base", base, "--out", tmp_path / "model")
    assert code == 2
    assert message in error
    assert not (tmp_path / "model").exists()


def test_existing_folder_is_refused_and_unchanged(exported: Exported, run: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    code, _, error = exported(run, "--out", tmp_path / "model")
    assert code == 2
    assert "exists already; choose another folder, or move it away" in error
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]


Usage = namedtuple("Usage", "free")


def test_export_without_room_is_refused(
    exported: Exported, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as change:
        change.setattr(exporting.shutil, "disk_usage", lambda _: Usage(1000))
        code, _, error = exported(run, "--out", tmp_path / "model")
        assert (code, "0.0 MiB free; make room" in error) == (2, True)
    monkeypatch.setattr("psutil.virtual_memory", lambda: namedtuple("Memory", "available")(2**26))
    code, _, error = exported(run, "--out", tmp_path / "model")
    assert (code, "leave the check out with --no-check" in error) == (2, True)
    assert list(tmp_path.iterdir()) == []
    assert exported(run, "--out", tmp_path / "model", "--no-check")[0] == 0


@pytest.mark.parametrize("options", [[], ["--private", "--out", "x"], ["--yes", "--out", "x"]])
def test_incompatible_options_are_refused(exported: Exported, run: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        exported(run, *options)
    assert ended.value.code == 2


# --- of a real run ---


def test_card_of_a_run_has_its_results_and_command(whole: Path) -> None:
    card = (whole / "adapter" / "README.md").read_text()
    summary = json.loads((whole / "summary.json").read_text())
    assert (
        f"Held-out accuracy: {summary['eval_accuracy_before']:.3f} before, {summary['eval_accuracy_after']:.3f} after."
        in card
    )
    assert f"| tokens generated | {summary['generated_tokens']:,}, " in card
    assert re.search(r"python launch/train\.py --config launch/configs/tiny-cpu\.yaml .*run\.output_dir=", card)
    assert "| prompts held out | 4 |" in card
    assert "| vllm" in card
    assert len(front_matter(card)["adagrpo_ray"]["base_fingerprint"]) == 32


def test_code_of_both_cards_runs(
    exported: Exported,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first code block of each card is run: that for PEFT, and that for Transformers."""
    assert exported(whole, "--out", tmp_path / "model", "--no-check")[0] == 0
    monkeypatch.chdir(whole)  # the code reads config.yaml
    for folder, place in ((whole / "adapter", "path/to/this/adapter"), (tmp_path / "model", "path/to/this/model")):
        code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
        assert place in code
        exec(code.replace(place, str(folder)).replace('"content": "..."', '"content": "12+34"'), {})
        assert capsys.readouterr().out.strip()


def test_export_of_last_checkpoint_equals_that_of_the_run(exported: Exported, whole: Path, tmp_path: Path) -> None:
    """The last checkpoint has the same weights as the adapter, since the model is float32."""
    assert exported(whole, "--out", tmp_path / "run")[0] == 0
    code, output, errors = exported(whole / "checkpoints" / "step-000004", "--out", tmp_path / "checkpoint")
    assert code == 0, errors
    assert "of run-step-000004 into tiny" in output
    run, checkpoint = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "checkpoint"))
    assert all(torch.equal(run[name], checkpoint[name]) for name in run)
    card = (tmp_path / "checkpoint" / "README.md").read_text()
    assert "| steps | 4 in " in card


@pytest.mark.slow
def test_vllm_serves_the_merged_model(exported: Exported, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert exported(run, "--out", tmp_path / "model")[0] == 0
    prompt = np.arange(10, 22, dtype=np.int32)
    request = GenerationRequest("p", prompt, 4, SamplingParams(), max_new_tokens=16, seed=1)
    with asyncio.Runner() as loop:
        engine = loop.run(RolloutEngine.start(str(tmp_path / "model"), 64, CONFIG))
        completions = loop.run(engine.generate(request))
        loop.run(engine.stop())
    assert len(completions) == 4
    for completion in completions:
        text = torch.tensor([*prompt.tolist(), *completion.token_ids.tolist()])
        expected = logits(tiny_model, run / "adapter", text)[0, len(prompt) - 1 : -1].log_softmax(-1)
        chosen = expected.gather(-1, text[len(prompt) :, None]).squeeze(-1)
        np.testing.assert_allclose(completion.logprobs, chosen.numpy(), atol=1e-3)
