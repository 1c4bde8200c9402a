"""The merged model of a run has the chat template of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.export.adapter_source import opened
from adagrpo_ray.export.exporting import ExportRequest, export
from tests.support.scripted import ASKS, scripted_model, tokenizer_of
from tests.support.trained import make_run


@pytest.fixture
def run(tmp_path: Path, template_file: Path) -> Path:
    """A run folder with a base model without a template, as a run with a file as `data.chat_template` writes it."""
    tokenizer = tokenizer_of("bos", None)
    base = scripted_model(tmp_path / "base", tokenizer, tokenizer.encode("ab", add_special_tokens=False))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1?", "solution": "7"}) + "\n")
    config = Config.load(
        "launch/configs/tiny-cpu.yaml",
        [f"model.path={base}", f"data.source={rows}", f"data.chat_template={template_file}", "data.eval_prompts=0"],
    )
    folder = make_run(tmp_path / "run", base, config)
    (folder / "adapter" / "chat_template.jinja").write_text(ASKS)
    return folder


def test_merged_model_has_template_of_training(run: Path, template_file: Path, tmp_path: Path) -> None:
    template_file.unlink()  # as on another machine
    notices: list[str] = []
    merged = export(ExportRequest(str(run), tmp_path / "merged"), notices.append)
    assert any("prompts of" in line and "rows.jsonl" in line for line in notices)
    assert AutoTokenizer.from_pretrained(merged).chat_template == ASKS
    (run / "adapter" / "chat_template.jinja").unlink()
    gone = r"the chat template of the run is not in .*adapter, and data\.chat_template='.*' cannot be read"
    with pytest.raises(ModelError, match=gone), opened(str(run)):
        pass


def test_model_trained_on_plain_text_is_compared_on_plain_text(run: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["chat_template"] = "none"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    for name in ("chat_template.jinja", "README.md"):
        (run / "adapter" / name).unlink()
    notices: list[str] = []
    merged = export(ExportRequest(str(run), tmp_path / "merged"), notices.append)
    assert any("prompts of" in line and "rows.jsonl" in line for line in notices)
    assert AutoTokenizer.from_pretrained(merged).chat_template is None
    assert "llm.generate(text," in (merged / "README.md").read_text()
