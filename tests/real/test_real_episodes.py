"""Episodes of SmolLM2: a short run of each example on the real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.program import launch, metrics
from tests.support.real_model import REAL

pytestmark = REAL

FEW = ("run.steps=2", "data.eval_prompts=4", "evaluation.samples=1", "algorithm.prompts_per_step=4")


@pytest.mark.parametrize("name", ["calculator", "guessing"])
def test_example_trains_on_episodes_of_several_turns(tmp_path: Path, name: str) -> None:
    config = f"launch/configs/smollm2-{name}.yaml"
    ended = launch("--config", config, *FEW, f"run.output_dir={tmp_path}", "run.name=run")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folder = tmp_path / "run"
    assert len(metrics(folder)) == 2
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    episodes = [c for s in samples for a in s["attempts"] for c in a["completions"]]
    assert any(len(episode["turns"]) > 1 for episode in episodes)
    assert any(episode["reward"] > 0 for episode in episodes)
