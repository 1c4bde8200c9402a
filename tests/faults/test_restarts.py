"""Actors that die in the middle of a run, on real Ray, vLLM, DeepSpeed and PEFT."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.held import Gate, assert_same_run, started
from tests.support.program import ENDING_S, children, metrics, settings, title


def lose(actor: str, gate: Gate, folder: Path, *options: str) -> tuple[int, str, str]:
    """Exit code and output of a run of four steps, in the third of which an actor of this kind is killed."""
    gate.close(folder / "run" / "metrics.jsonl", (2, 1))
    command = [sys.executable, "launch/train.py", *settings(folder, 4), "checkpoint.every=1", *gate.settings, *options]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        gate.wait(running)
        processes = children(running)
        *_, one = [process for process in processes if title(process).startswith(f"ray::{actor}")]
        one.kill()
        gate.open()
        output, errors = running.communicate()
    _, left = psutil.wait_procs(processes, timeout=ENDING_S)
    assert [title(process) for process in left] == []
    return running.returncode, output, errors


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_loses_a_learner_rank_gives_the_same_result(whole: Path, gate: Gate, tmp_path: Path) -> None:
    code, output, errors = lose("LearnerActor", gate, tmp_path)
    assert code == 0, output + errors
    assert "a learner rank died" in output
    assert "restarting, 1 of run.max_restarts=2" in output
    assert "resuming after step" in output
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_two_ranks_without_restarts_ends_with_one_line(gate: Gate, tmp_path: Path) -> None:
    code, output, errors = lose("LearnerActor", gate, tmp_path, "learner.ranks=2", "run.max_restarts=0")
    assert code == 2, output + errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "a learner rank died" in line
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "checkpoints" / "latest").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_without_rollout_actors_and_restarts_ends_with_a_checkpoint(gate: Gate, tmp_path: Path) -> None:
    code, output, errors = lose("RolloutActor", gate, tmp_path, "checkpoint.every=0", "rollout.max_restarts=0")
    assert code == 2, output + errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "rollout.max_restarts=0" in line
    assert "Traceback" not in errors
    step = int((tmp_path / "run" / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    assert step == len(metrics(tmp_path / "run")) >= 2
