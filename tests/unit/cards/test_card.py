"""Model cards of records made by hand, and the identity of base models."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from adagrpo_ray.cards.card import Facts, Merge, adapter_card, merged_card, package_versions
from adagrpo_ray.config import Config
from adagrpo_ray.config.secrets import shown_command
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.identity import ModelIdentity, fingerprint, front_matter, identify
from adagrpo_ray.runs import summarize
from tests.support.histories import BEFORE, ON_BENCHMARKS, STEP

AFTER = replace(BEFORE, step=1, accuracy=0.5, accuracy_by_difficulty={"2": 0.75, "5": 0.25})
SUMMARY = summarize([STEP], BEFORE, AFTER, name="my-run", folder="runs/my-run", adapter="runs/my-run/adapter")
QWEN = ModelIdentity("Qwen/Qwen3-1.7B", True, "abc123", "f" * 32, "apache-2.0")
TINY = ModelIdentity("tiny", fingerprint="f" * 32, license="mit")
HUB = {"model": {"path": "Qwen/Qwen3-1.7B"}, "data": {"source": "open-r1/DAPO-Math-17k-Processed"}}


def card(base: ModelIdentity = QWEN, summary: Any = SUMMARY, **tree: Any) -> str:
    config = Config.model_validate({**HUB, **tree})
    facts = Facts(config, base, summary, "python launch/train.py", (1900, 100), {"peft": "0.21"})
    return adapter_card(facts)


def blocks(text: str, language: str) -> list[str]:
    """The contents of the code blocks in this language."""
    return [body for _, body in re.findall(rf"^(`{{3,}}){language}\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)]


def test_front_matter_is_read_by_the_hub() -> None:
    data = ModelCard(card()).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("Qwen/Qwen3-1.7B", "peft", "text-generation")
    assert (data.license, data.datasets) == ("apache-2.0", ["open-r1/DAPO-Math-17k-Processed"])
    assert {"lora", "grpo", "adagrpo"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.5)
    assert front_matter(card())["adagrpo_ray"] == {"base_fingerprint": "f" * 32, "base_revision": "abc123"}


def test_card_names_the_adapter_that_training_continued() -> None:
    text = card(model={**HUB["model"], "adapter": "/home/me/runs/first/adapter", "lora": {"dropout": 0.1}})
    assert "| continues the adapter | `first/adapter` |" in text
    assert "| `model.lora.dropout` | 0.1 |" in text
    assert "continues the adapter" not in card()


def test_local_paths_are_not_in_the_card() -> None:
    base = ModelIdentity("/home/me/models/mine", fingerprint="e" * 32)
    text = card(base, data={"source": "/home/me/secret-project/problems.jsonl"})
    head = front_matter(text)
    assert not {"base_model", "datasets", "license"} & set(head)
    assert "/home/me" not in text.partition("<details>")[0]
    assert "the model `mine`" in text
    assert "`problems.jsonl`" in text
    assert "see the base model's own card" in text


def test_card_has_results_by_difficulty_and_tokens() -> None:
    text = card()
    assert "Held-out accuracy: 0.250 before, 0.500 after." in text
    assert "| all | 0.250 | 0.500 | +0.250 | 4 |" in text
    assert re.search(r"\| 5 \| \S+ \| 0\.250 \| \S+ \| 3 \|", text)
    assert "| tokens generated | 4,000, of which 1,000 by resamples |" in text
    assert "| resamples by rung | 3+1 |" in text
    assert "| prompts trained on | 1900 |" in text


def test_card_has_results_on_benchmarks() -> None:
    after = replace(ON_BENCHMARKS, benchmark_accuracy={"gsm8k": 0.5})
    text = card(summary=summarize([STEP], ON_BENCHMARKS, after, name="r", folder="r", adapter="r"))
    assert "| gsm8k | 0.375 | 0.500 | +0.125 |" in text
    assert "| aime24 | 0.000 | - | - |" in text
    assert "On benchmarks" not in card()


def test_card_without_an_evaluation_has_no_accuracy() -> None:
    text = card(summary=summarize([STEP], None, None, name="r", folder="r", adapter="r"))
    assert "Held-out accuracy was not evaluated." in text
    assert "model-index" not in front_matter(text)
    assert "nan" not in text.lower()


def test_ladder_table_has_all_triggers() -> None:
    triggers = [
        {"from_step": 1, "rungs": []},
        {"from_step": 50, "rungs": [{"times": 2, "temperature": 1.1, "top_p": 0.99, "answer": {"temperature": 0.7}}]},
    ]
    text = card(algorithm={"triggers": triggers, "sampling": {"temperature": 0.9}})
    assert "| all | first attempt | 1 | 0.9 | 1 | 0 | 0 | 1 | - |" in text
    assert "| from 1 | no resamples |" in text
    assert "| from 50 | 1 | 2 | 1.1 | 0.99 | 0 | 0 | 1 | temperature 0.7, top_p 1, top_k 0, min_p 0, " in text
    assert "| `algorithm.resample` | deferred |" in text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("adagrpo", ("max_variance", "4", "std", "at most 2", "at most 4", "1.0")),
        ("grpo", ("last", None, "std", "1", "1", "1.0")),
    ],
)
def test_card_has_the_defaults_of_the_method(name: str, values: tuple[str | None, ...]) -> None:
    text = card(algorithm={"name": name, "group_size": 8}).partition("<details>")[0]
    keys = (
        "algorithm.train_on",
        "algorithm.train_size",
        "algorithm.advantage_scale",
        "algorithm.num_iterations",
        "algorithm.num_mini_batches",
    )
    for key, value in zip((*keys, "learner.max_grad_norm"), values, strict=True):
        assert re.findall(rf"\| `{re.escape(key)}` \| (.*) \|", text) == [value] * (value is not None)


def test_card_of_grpo_has_no_ladder() -> None:
    text = card(algorithm={"name": "grpo"})
    assert "from 1" not in text
    assert "algorithm.resample" not in text.partition("<details>")[0]
    assert "(GRPO)" in text


@pytest.mark.parametrize("base", [QWEN, TINY])
def test_code_of_the_card_compiles_and_has_the_system_prompt(base: ModelIdentity) -> None:
    text = card(base, data={"source": "arithmetic", "system_prompt": 'Say "x" | `y`\n```\nthen {answer_start}.'})
    peft, vllm = blocks(text, "python")
    compile(peft + vllm, "card", "exec")
    assert json.dumps('Say "x" | `y`\n```\nthen SOLUTION_START_FLAG.') in peft
    assert "PeftModel.from_pretrained" in peft
    assert "LoRARequest" in vllm
    assert ('revision="abc123"' in peft) == (base is QWEN)


def test_texts_of_settings_stay_in_their_blocks() -> None:
    prompt = "one\n```\n# Title\n````\n| a | b |\n## Heading"
    text = card(data={"source": "x.jsonl", "system_prompt": prompt, "format": {"answer_start": "`|`"}})
    outside = re.sub(r"^(`{3,})\w*\n(.*?)^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert prompt in blocks(text, "text")[0]
    assert "# Title" not in outside
    assert "Heading" not in outside


def test_settings_are_read_back_from_the_card() -> None:
    text = card(algorithm={"group_size": 6})
    (shown,) = blocks(text, "yaml")
    config = Config.model_validate(yaml.safe_load(shown))
    assert (config.algorithm.group_size, config.model.path) == (6, "Qwen/Qwen3-1.7B")


def test_merged_card_has_usage_and_merge() -> None:
    text = merged_card(card(), "my-run", QWEN, Merge("bfloat16", "all alike"))
    data = ModelCard(text).data
    assert (data.library_name, data.base_model, data.license) == ("transformers", "Qwen/Qwen3-1.7B", "apache-2.0")
    assert "lora" not in data.tags
    assert front_matter(text)["base_model_relation"] == "finetune"
    assert "PeftModel" not in text
    assert text.count("## Use") == 1
    assert "was stored in bfloat16. Compared with the adapter on its base model: all alike." in text
    assert "| all | 0.250 | 0.500 | +0.250 | 4 |" in text
    compile("".join(blocks(text, "python")), "card", "exec")


@pytest.mark.parametrize(
    "other", [None, "", "# A card", "---\nlicense: [\n---\nx", "---\nlicense: mit\n---\n# Not ours"]
)
def test_card_of_another_library_is_ignored(other: str | None) -> None:
    text = merged_card(other, "x", replace(QWEN, license=None), Merge("float32", None))
    assert "Not ours" not in text
    assert "license" not in front_matter(text)
    assert "It was not checked." in text
    assert "pipeline" in blocks(text, "python")[0]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (
            ["python", "launch/train.py", "rollout.max_new_tokens=96"],
            "python launch/train.py rollout.max_new_tokens=96",
        ),
        (["x", "algorithm.budget_unit=tokens", "a b"], "x algorithm.budget_unit=tokens 'a b'"),
        (["x", "--hf-token", "abc", "y"], "x --hf-token '***' y"),
        (["x", "--hf_token=abc def"], "x '--hf_token=***'"),
        (["x", "API_KEY=abc"], "x 'API_KEY=***'"),
        (["x", "s=hf_abcdefghij"], "x 's=***'"),
        (["x", "run.output_dir=s3://me:pw@host/runs"], "x 'run.output_dir=s3://***@host/runs'"),
        (["x", "https://host/d?sig=abc&x=1"], "x 'https://host/d?***'"),
        (["x", "https://host/d?download&sig=abc"], "x 'https://host/d?***'"),
    ],
)
def test_command_is_shown_without_secrets(arguments: list[str], shown: str) -> None:
    assert shown_command(arguments) == shown


def test_package_versions_are_those_installed() -> None:
    versions = package_versions()
    assert versions["torch"].startswith("2.")
    assert {"python", "peft", "transformers", "adagrpo_ray"} <= set(versions)


# --- the identity of the base model ---


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(60, 60, generator=generator) for name in ("a", "b", "c")}
    save_file(tensors, tmp_path / "one" / "model.safetensors")
    return tmp_path / "one"


def test_fingerprint_is_independent_of_the_split_into_files(weights: Path, tmp_path: Path) -> None:
    tensors = load_file(weights / "model.safetensors")
    (tmp_path / "two").mkdir()
    save_file({"c": tensors["c"]}, tmp_path / "two" / "x.safetensors", metadata={"format": "pt"})
    save_file({"a": tensors["a"], "b": tensors["b"]}, tmp_path / "two" / "y.safetensors")
    assert fingerprint(tmp_path / "two") == fingerprint(weights)


@pytest.mark.parametrize("change", ["value", "name", "shape", "type"])
def test_fingerprint_changes_with_the_weights(weights: Path, change: str) -> None:
    tensors, before = load_file(weights / "model.safetensors"), fingerprint(weights)
    if change == "value":
        tensors["b"][-1, -1] += 1
    elif change == "name":
        tensors["d"] = tensors.pop("c")
    else:
        tensors["a"] = tensors["a"].reshape(30, 120) if change == "shape" else tensors["a"].half()
    save_file(tensors, weights / "model.safetensors")
    assert fingerprint(weights) != before


def test_identity_of_a_folder_has_fingerprint_and_licence(weights: Path) -> None:
    (weights / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    base = identify(str(weights), str(weights))
    assert (base.on_hub, base.license, base.fingerprint) == (False, "apache-2.0", fingerprint(weights))


def test_incomplete_weights_have_no_fingerprint(weights: Path) -> None:
    index = {"weight_map": {"a": "one.safetensors", "d": "two.safetensors"}}
    (weights / "model.safetensors").rename(weights / "one.safetensors")
    assert fingerprint(weights)
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="does not hold all weights"):
        fingerprint(weights)
    (weights / "one.safetensors").unlink()
    assert identify("x", str(weights)).fingerprint is None


def test_damaged_file_has_no_fingerprint(weights: Path) -> None:
    (weights / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="no safetensors file that can be read"):
        fingerprint(weights)
    assert identify("x", str(weights)).fingerprint is None


def test_uncached_model_of_the_hub_has_only_a_name() -> None:
    assert identify("nobody/nothing", "nobody/nothing") == ModelIdentity("nobody/nothing", on_hub=True)


def test_each_example_configuration_has_a_card() -> None:
    files = sorted(Path("launch/configs").glob("*.yaml"))
    assert files
    for file in files:
        text = adapter_card(Facts(Config.load(file), TINY, replace(SUMMARY, eval_accuracy_before=None)))
        assert front_matter(text)["library_name"] == "peft"
