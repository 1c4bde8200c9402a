"""A run that was stopped and resumed gives the result of one that was not, on real Ray, vLLM, DeepSpeed and PEFT."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.held import Gate, assert_same_run, started
from tests.support.program import ENDING_S, children, is_engine, metrics, settings, title, train

pytestmark = pytest.mark.long

KEEP_BEST = ("evaluation.every=1", "checkpoint.keep_best=true")


def assert_ended(processes: set[psutil.Process]) -> None:
    """All end by themselves, although the killed program could not end them."""
    _, left = psutil.wait_procs(processes, timeout=ENDING_S)
    assert [title(process) for process in left] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resumed_run_after_sigkill_gives_the_same_result(whole: Path, gate: Gate, tmp_path: Path) -> None:
    """The run is killed when it has a checkpoint of its second step and none of the third.

    This is while it samples the third step, or while it evaluates after it. Its newest checkpoint is then damaged, so
    that it resumes from the one before.
    """
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    place = random.randrange(8)  # of four groups that it samples and four that it evaluates on
    gate.close(folder / "metrics.jsonl", (2, 4 + place))  # before, it evaluates after the second step
    command = [sys.executable, "launch/train.py", *settings(tmp_path, 4), *gate.settings, "checkpoint.every=1"]
    with (
        (tmp_path / "output").open("w") as output,
        started([*command, *KEEP_BEST], stdout=output, stderr=output) as run,
    ):
        gate.wait(run)
        processes = children(run)
        found = " ".join(map(title, processes))
        assert all(name in found for name in ("raylet", "LearnerActor"))
        assert any(map(is_engine, processes))
        run.kill()
    assert run.returncode == -signal.SIGKILL
    assert_ended(processes)
    gate.open()
    assert len(metrics(folder)) == (2 if place < 4 else 3)
    assert (checkpoints / "latest").read_text() == "step-000002\n"
    state = checkpoints / "step-000002" / "state.json"
    state.write_bytes(state.read_bytes()[:-1])
    assert json.loads((checkpoints / "step-000001" / "sampler.json").read_text())["waiting"]

    resumed = train(tmp_path, 4, "--resume", "auto", *gate.settings, *KEEP_BEST)

    assert "step-000002 is damaged" in resumed
    assert f"resuming after step 1, from {checkpoints}/step-000001" in resumed
    assert_same_run(folder, whole)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (folder, whole)]
    assert summaries[0]["steps"] == 4
    for key in ("eval_accuracy_before", "eval_accuracy_after", "generated_tokens", "resamples", "rescued"):
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


@pytest.mark.timeout(1800)  # with the shared run; a busy machine takes ten minutes
def test_ctrl_c_ends_a_run_with_a_checkpoint_and_leaves_no_process(whole: Path, gate: Gate, tmp_path: Path) -> None:
    """The signal arrives in the middle of a step, whose groups are abandoned and sampled again by the resumed run.

    SIGTERM does the same to a job in test_submit.py.
    """
    gate.close(tmp_path / "run" / "metrics.jsonl", (2, 1))
    command = [sys.executable, "launch/train.py", *settings(tmp_path, 4), *gate.settings]
    # A separate session, like that of a terminal: Ctrl-C signals every process of it.
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, **piped, start_new_session=True) as running:
        gate.wait(running)
        processes = children(running)
        assert any(map(is_engine, processes))
        os.killpg(running.pid, signal.SIGINT)
        output, errors = running.communicate()

    assert running.returncode == 128 + signal.SIGINT, output + errors
    assert len(metrics(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-000002\n"
    assert f"step 2 is in {tmp_path}/run/checkpoints: continue with --resume {tmp_path}/run" in errors
    assert_ended(processes)
    gate.open()
    train(tmp_path, 4, "--resume", "auto", *gate.settings)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_signal_ends_a_run_at_once_and_leaves_no_process(gate: Gate, tmp_path: Path) -> None:
    """The learner is stopped, so that the run cannot end by itself after the first signal."""
    gate.close(tmp_path / "run" / "metrics.jsonl", (1, 1))
    command = [sys.executable, "launch/train.py", *settings(tmp_path, 4), *gate.settings]
    with started(command, stderr=subprocess.PIPE, text=True) as running:
        gate.wait(running)
        processes = children(running)
        (learner,) = [process for process in processes if title(process).startswith("ray::LearnerActor")]
        learner.suspend()
        running.send_signal(signal.SIGTERM)
        assert running.stderr is not None
        while "signal again to exit at once" not in (line := running.stderr.readline()):
            assert line, "it ended without a word"
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=ENDING_S)  # it would wait for the learner for ever
        learner.resume()
    assert running.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "checkpoints" / "latest").exists()  # nothing was waited for
    assert_ended(processes)
