"""A run that was stopped and goes on ends as one that was not, on real Ray, vLLM, DeepSpeed and PEFT."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from adagrpo_ray.learner import checkpoint
from tests.program import children, metrics, settings, title, train

SAME = ("adapter/adapter_model.safetensors", "samples.jsonl")
KEEP_BEST = ("evaluation.every=1", "checkpoint.keep_best=true")


def assert_ended(started: set[psutil.Process]) -> None:
    """All end by themselves, though the program could not see to it."""
    _, left = psutil.wait_procs(started, timeout=30)
    assert [title(process) for process in left] == []


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed at some moment after its second step, and left no process behind."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "launch/train.py", *settings(folder, 4), "checkpoint.every=1", *KEEP_BEST]
    latest, steps = folder / "run" / "checkpoints" / "latest", folder / "run" / "metrics.jsonl"
    with (folder / "output").open("w") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output)
    while not latest.exists() or latest.read_text() != "step-000002\n":
        assert running.poll() is None, (folder / "output").read_text()
        time.sleep(0.02)
    time.sleep(random.uniform(0, json.loads(steps.read_text().splitlines()[1])["seconds"]))
    started = children(running)
    assert {"raylet", "EngineCore", "LearnerActor"} <= {part for p in started for part in re.findall(r"\w+", title(p))}
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert_ended(started)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_ends_as_one_that_never_stopped(whole: Path, killed: Path, tmp_path: Path) -> None:
    """Its newest checkpoint was damaged, too, so that it goes on from the one before."""
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    checkpoints = folder / "checkpoints"
    newest = (checkpoints / "latest").read_text().strip()
    step = int(newest.removeprefix("step-")) - 1
    state = checkpoints / newest / "state.json"
    state.write_bytes(state.read_bytes()[:-1])
    came_from = f"step-{step:06d}"
    assert json.loads((checkpoints / came_from / "sampler.json").read_text())["waiting"]

    output = train(tmp_path, 4, "--resume", "auto", *KEEP_BEST)

    assert f"{newest} is damaged" in output
    assert f"going on after step {step}, from {folder}/checkpoints/{came_from}" in output
    assert metrics(folder) == metrics(whole)
    for file in SAME:
        assert (folder / file).read_bytes() == (whole / file).read_bytes()
    summaries = [json.loads((run / "summary.json").read_text()) for run in (folder, whole)]
    assert summaries[0]["steps"] == 4
    for key in ("accuracy_before", "accuracy_after", "generated_tokens", "resamples", "rescued"):
        assert summaries[0][key] == summaries[1][key]
    assert {p.suffix for p in (checkpoints / "step-000004").iterdir()} == {".json", ".safetensors"}
    measured = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [record["step"] for record in measured] == [0, 1, 2, 3, 4]
    best = max(measured[1:], key=lambda record: record["accuracy"])["step"]
    assert (checkpoints / "best").read_text() == f"step-{best:06d}\n"
    assert {p.name for p in checkpoints.iterdir()} == {
        *("best", "latest", "step-000003", "step-000004"),
        f"step-{best:06d}",
    }


@pytest.mark.parametrize("harm", ["cut", "emptied", "one bit", "gone"])
def test_any_harm_to_any_file_of_a_checkpoint_is_found(whole: Path, tmp_path: Path, harm: str) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path, dirs_exist_ok=True)
    files = sorted((tmp_path / "step-000004").iterdir())
    kinds = ("adapter", "checksums", "optimizer", "random", "sampler", "sampler", "state")
    assert tuple(file.stem for file in files) == kinds
    for file in files:
        good = file.read_bytes()
        if harm == "gone":
            file.unlink()
        else:
            place = random.randrange(len(good))
            changed = good[:place] + bytes([good[place] ^ 1 << random.randrange(8)]) + good[place + 1 :]
            file.write_bytes({"cut": good[:place], "emptied": b"", "one bit": changed}[harm])
        told: list[str] = []
        assert checkpoint.newest(tmp_path, told.append) == tmp_path / "step-000003", file
        assert [f"{tmp_path}/step-000004 is damaged" in text for text in told] == [True]
        file.write_bytes(good)
    assert checkpoint.newest(tmp_path, told.append) == tmp_path / "step-000004"


@pytest.mark.timeout(900)
def test_ctrl_c_ends_a_run_with_a_checkpoint_and_nothing_behind(whole: Path, tmp_path: Path) -> None:
    """It comes in the middle of a step, whose groups are given up and sampled again by the run that goes on.

    SIGTERM does the same to a job in tests/test_submit.py.
    """
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
    os.killpg(running.pid, signal.SIGINT)
    output, errors = running.communicate(timeout=120)

    assert running.returncode == 128 + signal.SIGINT, output + errors
    step = int((tmp_path / "run" / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    assert 2 <= step < 4
    assert f"step {step} is in {tmp_path}/run/checkpoints: go on with --resume {tmp_path}/run" in errors
    _, left = psutil.wait_procs(started, timeout=20)
    assert [title(process) for process in left] == []
    train(tmp_path, 4, "--resume", "auto")
    assert metrics(tmp_path / "run") == metrics(whole)
    for file in SAME:
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_signal_ends_a_run_at_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "launch/train.py", *settings(tmp_path, 4)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not metrics(tmp_path / "run"):
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    started = children(running)
    running.send_signal(signal.SIGTERM)
    assert running.stderr is not None
    while "once more to leave at once" not in (line := running.stderr.readline()):
        assert line, "it ended without a word"
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=5)
    assert running.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "checkpoints" / "latest").exists()  # nothing was waited for
    assert_ended(started)
