"""A run that was stopped and goes on ends as one that was not, on real Ray, vLLM, DeepSpeed and PEFT."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.program import children, metrics, settings, title, train


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("half")
    train(folder, 2)
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

    output = train(tmp_path, 4, "--resume", "auto")

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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_a_checkpoint_and_nothing_behind(
    whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """It comes in the middle of a step, whose groups are given up and sampled again by the run that goes on."""
    command = [sys.executable, "launch/train.py", *settings(tmp_path, 4)]
    # A session of its own, as a terminal gives: Ctrl-C goes to every process of it.
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    steps = tmp_path / "run" / "metrics.jsonl"
    while not steps.exists() or len(steps.read_text().splitlines()) < 2:
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    started = children(running)
    assert any("EngineCore" in title(process) for process in started)
    os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
    output, errors = running.communicate(timeout=120)

    assert running.returncode == 128 + number, output + errors
    step = int((tmp_path / "run" / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    assert 2 <= step < 4
    assert f"step {step} is in {tmp_path}/run/checkpoints: go on with --resume {tmp_path}/run" in errors
    _, left = psutil.wait_procs(started, timeout=20)
    assert [title(process) for process in left] == []
    if number == signal.SIGTERM:
        train(tmp_path, 4, "--resume", "auto")
        assert metrics(tmp_path / "run") == metrics(whole)
        adapter = "adapter/adapter_model.safetensors"
        assert (tmp_path / "run" / adapter).read_bytes() == (whole / adapter).read_bytes()
