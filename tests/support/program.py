"""Starts launch/train.py as a program, with settings whose runs are identical to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ENDING_S = 120.0
"""Limit for processes to end by themselves, in seconds; a process that is left behind would stay forever."""
TIMES = ("step_time", "time", "tokens_per_second", "sync_time")
AHEAD = ("rollout.actors=2", "algorithm.max_staleness=1", "learner.ranks=2", "learner.zero_stage=2")
"""Settings of a run with two actors of each kind, whose rollouts are a step ahead of training."""
QUICK = ("data.train_prompts=8", "data.eval_prompts=4", "algorithm.prompts_per_step=1")
"""Settings with few prompts."""
OUTPUT = "output"
"""The file with the output of the run of all tests, in the parent of its folder."""
PLANTED = "hf_" + "planted0" * 4
"""A token in the environment of a run, which the run must not write anywhere."""


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program with these arguments to its end. Checks that none of its processes is left behind.

    It draws no figures unless the arguments request it, which saves seconds.
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
            running.kill()  # if the test ends before
    _, left = psutil.wait_procs(started, timeout=ENDING_S)
    assert [title(process) for process in left] == []
    return subprocess.CompletedProcess(command, running.returncode, output, errors)


def children(running: subprocess.Popen[str]) -> set[psutil.Process]:
    """All descendants of the program."""
    try:
        return set(psutil.Process(running.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def title(process: psutil.Process) -> str:
    """The title of a process, as `ps` shows it; "" if it is gone."""
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


def is_engine(process: psutil.Process) -> bool:
    """Whether a process is an engine of vLLM.

    setproctitle sometimes has no effect, so that an engine keeps the title of a spawned Python process. Other spawned
    processes are scoring processes, which are children of a learner.
    """
    if "EngineCor" in title(process):  # Linux limits names to 15 characters
        return True
    with suppress(psutil.Error):
        parent = process.parent()
        return "spawn_main" in title(process) and parent is not None and "LearnerActor" not in title(parent)
    return False


def settings(folder: Path | str, steps: int) -> list[str]:
    """Settings of a run that leaves groups waiting between its steps.

    Sequences are decoded one at a time, since others in the same batch change the last bits of a sequence.
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
    """Run to the end; the output."""
    config = ("--config", "launch/configs/tiny-cpu.yaml")
    ended = launch(*config, *options, *settings(folder, steps), "checkpoint.every=1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The steps so far, without metrics of time."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]
