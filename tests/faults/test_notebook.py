"""A notebook without a running Ray: each run starts its own Ray, and an interrupt ends one of the runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.held import started, until
from tests.support.program import ENDING_S, children, metrics, title

CELLS = """
import asyncio, sys
assert not hasattr(sys.modules["__main__"], "__file__")
from adagrpo_ray import Config, StoppedError, train

def brief(completions, answer, **context):
    return [1.0 if len(text) < 40 else 0.0 for text in completions]

def load(steps):
    few = {"data.eval_prompts": 0, "algorithm.prompts_per_step": 4}
    return Config.load("launch/configs/tiny-cpu.yaml", {**few, "run.output_dir": FOLDER, "run.steps": steps})

async def cells():
    try:
        train(load(10_000), reward_functions=[brief], name="run")
    except StoppedError as error:
        print("stopped:", error)
    before = len(open(f"{FOLDER}/run/metrics.jsonl").readlines())

    def brief2(completions, answer, **context):
        return [1.0 if len(text) < 50 else 0.0 for text in completions]

    brief2.__name__ = "brief"
    summary = train(load(before + 1), reward_functions=[brief2], name="run", resume="auto")
    import ray
    print("resumed:", summary.steps == before + 1, ray.is_initialized())

asyncio.run(cells())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interrupted_cell_ends_its_run_and_the_next_cell_resumes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"FOLDER = {str(tmp_path)!r}\n{CELLS}"]
    # In a new session, because a notebook sends SIGINT to the whole process group of its kernel.
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command, **piped, start_new_session=True) as running:
        until(lambda: len(metrics(tmp_path / "run")) >= 2, running)
        processes = children(running)
        os.killpg(running.pid, signal.SIGINT)
        output, errors = running.communicate()

    assert running.returncode == 0, output + errors
    assert "stopped: stopped as asked; step " in output
    assert f"continue with --resume {tmp_path}/run" in output
    assert "warning: rewards.functions: brief is not the code that the run began with" in output
    assert "resumed: True False" in output
    _, left = psutil.wait_procs(processes, timeout=ENDING_S)
    assert [title(process) for process in left] == []
