"""launch/train.py as a user starts it, with runs that are alike to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ENDING_S = 120.0
"""How long processes may take to end by themselves, however busy the machine is; they would stay for ever."""
TIMES = ("step_time", "time", "tokens_per_second")
AHEAD = ("rollout.actors=2", "algorithm.max_staleness=1", "learner.ranks=2", "learner.zero_stage=2")
"""Settings of a run with two actors of each kind, whose rollouts run a step ahead."""
OUTPUT = "output"
"""The file beside the run of all tests, with what it said."""
PLANTED = "hf_" + "planted0" * 4
"""A token in the environment of a run, which must not leave it behind."""


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program on these arguments, to its end, which no process that it has started may outlive.

    It draws no figures unless told so, which saves seconds.
    """
    drawing = [] if "run.report=true" in arguments else ["run.report=false"]
    command = [sys.executable, "launch/train.py", *arguments, *drawing]
    started: set[psutil.Process] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            while True:
                try:
                    output, errors = running.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    started |= children(running)
        finally:
            running.kill()  # where the test ends before
    _, left = psutil.wait_procs(started, timeout=ENDING_S)
    assert [title(process) for process in left] == []
    return subprocess.CompletedProcess(command, running.returncode, output, errors)


def children(running: subprocess.Popen[str]) -> set[psutil.Process]:
    """The processes that it has started, and those that they have."""
    try:
        return set(psutil.Process(running.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def title(process: psutil.Process) -> str:
    """What `ps` shows of a process."""
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


def is_engine(process: psutil.Process) -> bool:
    """Whether it is an engine of vLLM.

    Some engines keep the title of a Python process, as setproctitle does nothing now and then: such a one is spawned by
    whatever is no learner, whose own children score.
    """
    if "EngineCor" in title(process):  # Linux keeps 15 letters of a name
        return True
    with suppress(psutil.Error):
        parent = process.parent()
        return "spawn_main" in title(process) and parent is not None and "LearnerActor" not in title(parent)
    return False


def settings(folder: Path | str, steps: int) -> list[str]:
    """Of a run that leaves groups waiting between its steps.

    Sequences are decoded one at a time, since what is decoded beside a sequence changes its last bits.
    """
    return [
        f"run.output_dir={folder}",
        "run.name=run",
        f"run.steps={steps}",
        "data.eval_prompts=4",
        "evaluation.samples=1",
        "algorithm.prompts_per_step=4",
        "algorithm.resample=deferred",
        "rollout.max_num_seqs=1",
    ]


def train(folder: Path | str, steps: int, *options: str) -> str:
    """A run to its end; its output."""
    config = ("--config", "launch/configs/tiny-cpu.yaml")
    ended = launch(*config, *options, *settings(folder, steps), "checkpoint.every=1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The steps so far, without what a clock measured."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]
