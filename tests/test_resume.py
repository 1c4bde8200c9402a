"""A run that was stopped and goes on ends as one that was not, on real Ray, vLLM, DeepSpeed and PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_end_to_end import launch

TIMES = ("seconds", "seconds_by_phase")


def train(folder: Path | str, name: str, steps: int, *options: str) -> str:
    """A run that leaves groups waiting between its steps; its output.

    Sequences are decoded one at a time, since what is decoded beside a sequence changes its last bits.
    """
    ended = launch(
        "--config",
        "launch/configs/tiny-cpu.yaml",
        *options,
        f"run.folder={folder}",
        f"run.name={name}",
        f"run.steps={steps}",
        "data.held_out_prompts=4",
        "evaluation.samples=1",
        "algorithm.prompts_per_step=8",
        "algorithm.resample=deferred",
        "rollout.max_sequences=1",
        "checkpoint.every=1",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The steps without what a clock measured."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, "run", 4)
    return folder / "run"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("half")
    train(folder, "run", 2)
    return folder / "run"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("damaged", [False, True])
def test_a_resumed_run_ends_as_one_that_never_stopped(whole: Path, half: Path, tmp_path: Path, damaged: bool) -> None:
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    if damaged:
        state = folder / "checkpoints" / "step-000002" / "state.json"
        state.write_bytes(state.read_bytes()[:-1])
    came_from = "step-000001" if damaged else "step-000002"
    assert json.loads((folder / "checkpoints" / came_from / "sampler.json").read_text())["waiting"]

    output = train(tmp_path, "run", 4, "--resume", "auto")

    assert ("step-000002 is damaged" in output) == damaged
    assert f"going on after step {1 if damaged else 2}, from {folder}/checkpoints/{came_from}" in output
    assert metrics(folder) == metrics(whole)
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (whole / adapter).read_bytes()
    summaries = [json.loads((run / "summary.json").read_text()) for run in (folder, whole)]
    assert summaries[0]["steps"] == 4
    for key in ("accuracy_before", "accuracy_after", "generated_tokens", "resamples", "rescued"):
        assert summaries[0][key] == summaries[1][key]
    assert {p.suffix for p in (folder / "checkpoints" / "step-000004").iterdir()} == {".json", ".safetensors"}
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["latest", "step-000003", "step-000004"]
