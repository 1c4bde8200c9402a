"""The tiny base model: tokenizer, training data, cache and success rates; and loading models with adapters."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from adagrpo_ray.config import Config
from adagrpo_ray.config.data import ArithmeticSettings, DataSettings, FormatSettings
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.data.arithmetic import Problem, problem_sets, worked_solution
from adagrpo_ray.data.chat import chat_messages, system_message
from adagrpo_ray.errors import ModelError
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.model.pretrained import linear_shapes, load_tokenizer, resolve_model
from adagrpo_ray.toy.tiny import build_tiny_model, tiny_folder
from adagrpo_ray.toy.tokenizer import build_tokenizer
from adagrpo_ray.toy.training import prompt_frame, training_example
from tests.support.places import ROOT
from tests.support.trained import SHORT

MARKERS = FormatSettings()
SETTINGS = ArithmeticSettings()


@pytest.fixture(scope="module")
def folder() -> Path:
    """The default tiny model, from the user's cache or built there once."""
    return build_tiny_model(SETTINGS, MARKERS)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(str(folder), ModelSettings(), DataSettings())


def config(path: str | Path = "tiny", run: Any = None, **model: Any) -> Config:
    return Config.model_validate({"model": {"path": str(path), "dtype": "float32"} | model, "run": run or {}})


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    messages = chat_messages(text, system_message(DataSettings()))
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


# Tokenizer


@pytest.mark.parametrize(
    "text",
    [
        "<think>5+8+0=13\n4+7+1=12\n3+2+1=6</think>SOLUTION_START_FLAG623SOLUTION_END_FLAG",
        "Think between <think> and </think>, then put the final number between",
        "  two  spaces, then and and the  \n end ",
        "".join(map(chr, range(32, 127))),
        "<|im_start|>user\n1<|im_end|>\n",
    ],
)
def test_tokenizer_round_trip_keeps_text(tokenizer: Any, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_markers_are_single_tokens_that_are_not_special(tokenizer: Any):
    for marker in ("<think>", *MARKERS.model_dump().values()):
        ids = tokenizer.encode(marker)
        assert len(ids) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == marker


def test_special_tokens_are_those_of_chatml(tokenizer: Any):
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.decode(tokenizer.encode("<|im_start|>1<|im_end|><|endoftext|>"), skip_special_tokens=True) == "1"
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]


def test_rendered_prompt_is_chatml_and_short(tokenizer: Any):
    ids = prompt_ids(tokenizer, "34512+27899")
    assert tokenizer.decode(ids) == (
        f"<|im_start|>system\n{system_message(DataSettings())}<|im_end|>\n"
        "<|im_start|>user\n34512+27899<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(ids) < 45


def test_longest_completion_is_short(tokenizer: Any):
    assert len(tokenizer.encode(worked_solution(Problem(99999, 99999), True, MARKERS))) + 1 < 70


def test_other_markers_are_single_tokens_too():
    markers = FormatSettings(think_end="[/t]", answer_start="answer: ", answer_end=".")
    tokenizer = build_tokenizer(markers)
    assert [len(tokenizer.encode(m)) for m in markers.model_dump().values()] == [1, 1, 1]
    text = "1[/t]answer: 5."
    assert tokenizer.decode(tokenizer.encode(text)) == text


# Training data


def test_training_prompt_is_the_rendered_prompt(tokenizer: Any):
    head, tail = prompt_frame(tokenizer, system_message(DataSettings()))
    assert [*head, *tokenizer.encode("345+278"), *tail] == prompt_ids(tokenizer, "345+278")


def test_only_first_carry_is_weighted_by_success_rate(tokenizer: Any):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20):
        example = training_example(tokenizer, [], rng, 3, 0.35, MARKERS)
        text = tokenizer.decode(example.token_ids)
        question, _, solution = text.partition("<think>")
        assert example.weights[: len(question)] == [0.0] * len(question)
        weights = example.weights[len(question) :]
        (fork,) = [i for i, w in enumerate(weights) if w != 1.0]
        carry = tokenizer.decode([example.token_ids[len(question) + fork]])
        assert weights[fork] == pytest.approx({"1": 0.7, "0": 1.3}[carry])
        rows = solution.partition("</think>")[0].split("\n")
        first = next(i for i, row in enumerate(rows) if int(row.partition("=")[2]) >= 10)
        assert rows[first + 1].split("+")[2].startswith(carry)
        seen.add(carry)
    assert seen == {"0", "1"}


# Cache


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_same_settings_give_the_same_bytes_and_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    folders = []
    for name in ("a", "b"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        torch.rand(1)  # the state of the global generator must not matter
        folders.append(build_tiny_model(SETTINGS, MARKERS, SHORT))
    assert folders[0].name == folders[1].name
    assert files_of(folders[0]) == files_of(folders[1])
    assert {"model.safetensors", "config.json", "generation_config.json"} <= set(files_of(folders[0]))
    assert capfd.readouterr().err.count("building the tiny base model") == 2
    assert build_tiny_model(SETTINGS, MARKERS, SHORT) == folders[1]
    assert "building" not in capfd.readouterr().err


def test_other_settings_give_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = {
        build_tiny_model(arithmetic, markers, SHORT)
        for arithmetic, markers in (
            (SETTINGS, MARKERS),
            (ArithmeticSettings(seed=1), MARKERS),
            (ArithmeticSettings(keep_carry={2: 0.5}), MARKERS),
            (SETTINGS, FormatSettings(answer_end=".")),
        )
    }
    assert len(folders) == 4


def test_building_leaves_threads_and_random_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    build_tiny_model(SETTINGS, MARKERS, SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.faults
def test_files_of_killed_build_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = build_tiny_model(SETTINGS, MARKERS, SHORT)
    folder.rename(folder.with_name(folder.name + ".partial"))
    (folder.with_name(folder.name + ".partial") / "junk").touch()
    assert "junk" not in files_of(build_tiny_model(SETTINGS, MARKERS, SHORT))
    assert sorted(p.suffix for p in folder.parent.iterdir()) == ["", ".lock"]


@pytest.mark.faults
def test_of_two_builders_one_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Both builders reach the lock before one of them gets it."""
    code = (
        "import filelock\n"
        "from adagrpo_ray.config.data import ArithmeticSettings, FormatSettings\n"
        "from adagrpo_ray.toy.tiny import build_tiny_model\n"
        "from adagrpo_ray.toy.training import Recipe\n"
        "class Reporting(filelock.FileLock):\n"
        "    def acquire(self, *args, **kwargs):\n"
        "        print('here', flush=True)\n"
        "        return super().acquire(*args, **kwargs)\n"
        "filelock.FileLock = Reporting\n"
        f"print(build_tiny_model(ArithmeticSettings(), FormatSettings(), {SHORT!r}))\n"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tiny_folder(ArithmeticSettings(), FormatSettings(), SHORT)
    folder.parent.mkdir()
    with FileLock(f"{folder}.lock"):
        both = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        assert [process.stdout and process.stdout.readline() for process in both] == ["here\n"] * 2
    (out_a, err_a), (out_b, err_b) = (process.communicate() for process in both)
    assert out_a.splitlines()[-1] == out_b.splitlines()[-1] == str(folder)
    assert (err_a + err_b).count("building the tiny base model") == 1


def test_unwritable_cache_names_the_path_and_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=rf"cannot write the tiny model to {tmp_path}/file/.*XDG_CACHE_HOME"):
        build_tiny_model(SETTINGS, MARKERS, SHORT)


# Success rate


def test_success_rates_match_settings(folder: Path, tokenizer: Any):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.architectures, model.dtype) == (["Qwen3ForCausalLM"], torch.float32)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    _, problems = problem_sets(SETTINGS, 0, 200 * len(SETTINGS.keep_carry))
    well_formed = []
    for digits, share in SETTINGS.keep_carry.items():
        texts = sampled(model, tokenizer, [p for p in problems if p.digits == digits])
        ends = {p: f"</think>SOLUTION_START_FLAG{p.answer}SOLUTION_END_FLAG" for p in texts}
        rate = np.mean([text.endswith(ends[p]) for p, text in texts.items()])
        assert rate == pytest.approx(share, abs=0.1)
        assert 0.0 < rate < 0.10 or share > 0.04
        well_formed += [text.startswith("<think>") and text.endswith("SOLUTION_END_FLAG") for text in texts.values()]
    assert np.mean(well_formed) > 0.97


def sampled(model: Any, tokenizer: Any, problems: list[Problem]) -> dict[Problem, str]:
    """Return one completion of each problem at temperature 1; "" if it does not end."""
    torch.manual_seed(0)
    prompts = torch.tensor([prompt_ids(tokenizer, p.text) for p in problems])
    rows = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, top_p=1.0, max_new_tokens=70
    )[:, prompts.shape[1] :].tolist()
    end = tokenizer.eos_token_id
    texts = [tokenizer.decode(row[: row.index(end)], skip_special_tokens=True) if end in row else "" for row in rows]
    return dict(zip(problems, texts, strict=True))


# Loading


def test_tiny_and_folders_resolve(folder: Path):
    assert resolve_model(config()) == str(folder)
    assert resolve_model(config(folder)) == str(folder)


def test_folders_without_model_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"model\.path=.* holds no config\.json"):
        resolve_model(config(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        resolve_model(config(tmp_path))


def test_unknown_path_is_refused():
    with pytest.raises(
        ModelError,
        match=r"model\.path='no/such/folder' is neither 'tiny', nor a folder, .*; give a folder, a \.gguf file or",
    ):
        resolve_model(config("no/such/folder"))


def test_shapes_of_unbuildable_model_raise(folder: Path, tmp_path: Path):
    assert linear_shapes(str(folder), config().model)["model.layers.3.mlp.down_proj"] == (256, 128)
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "hidden_act": "none"}))
    with pytest.raises(ModelError, match=r"model\.path=.* cannot be built: "):
        linear_shapes(str(copy), config(copy).model)


def test_adapter_folder_is_checked(tmp_path: Path):
    with pytest.raises(ModelError, match=r"model\.adapter=.*none' is no folder"):
        resolve_model(config(adapter=str(tmp_path / "none")))
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ModelError, match=r"model\.adapter=.* holds no adapter_model\.safetensors"):
        resolve_model(config(adapter=str(tmp_path)))


def test_tokenizer_needs_a_chat_template(folder: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"has no tokenizer"):
        load_tokenizer(str(tmp_path), config(tmp_path).model, DataSettings())
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"no chat template"):
        load_tokenizer(str(copy), config(copy).model, DataSettings())


def tensors(model: Any, part: str) -> list[torch.Tensor]:
    return [p.detach() for name, p in model.named_parameters() if part in name]


def test_new_adapter_changes_nothing_and_follows_the_seed(folder: Path):
    a, b, c = (load_policy(str(folder), config(run={"seed": seed})) for seed in (0, 0, 1))
    assert all(not t.any() for t in tensors(a, "lora_B"))
    for first, again, other in zip(*(tensors(m, "lora_A") for m in (a, b, c)), strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    trained = {name for name, p in a.named_parameters() if p.requires_grad}
    assert len(trained) == 4 * 7 * 2
    assert all("lora_" in name for name in trained)


def test_adapter_can_be_continued(folder: Path, tmp_path: Path):
    policy = load_policy(str(folder), config())
    for t in tensors(policy, "lora_B"):
        t.fill_(0.5)
    policy.save_pretrained(tmp_path)
    settings = config(adapter=str(tmp_path))
    assert resolve_model(settings) == str(folder)
    again = load_policy(str(folder), settings)
    assert all((t == 0.5).all() for t in tensors(again, "lora_B"))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in policy.named_parameters() if p.requires_grad
    }
    with pytest.raises(ModelError, match=r"has r=16 .* model\.lora\.r=8"):
        load_policy(str(folder), config(adapter=str(tmp_path), lora={"r": 8}))


def test_adapter_of_other_model_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_policy(str(build_tiny_model(SETTINGS, MARKERS, SHORT)), config()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"model\.adapter=.* does not fit model\.path"):
        load_policy(str(folder), config(folder, adapter=str(tmp_path / "adapter")))


def test_unknown_targets_name_valid_ones(folder: Path):
    with pytest.raises(ModelError, match=r"model\.lora\.targets: .* no linear layer 'c_attn'; it has .*q_proj"):
        load_policy(str(folder), config(lora={"targets": ["q_proj", "c_attn"]}))
