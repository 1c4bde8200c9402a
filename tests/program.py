"""launch/train.py as a user starts it, with runs that are alike to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMES = ("seconds", "seconds_by_phase")


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program on these arguments, to its end."""
    command = [sys.executable, "launch/train.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def settings(folder: Path | str, steps: int) -> list[str]:
    """Of a run that leaves groups waiting between its steps.

    Sequences are decoded one at a time, since what is decoded beside a sequence changes its last bits.
    """
    return [
        f"run.folder={folder}",
        "run.name=run",
        f"run.steps={steps}",
        "data.held_out_prompts=4",
        "evaluation.samples=1",
        "algorithm.prompts_per_step=8",
        "algorithm.resample=deferred",
        "rollout.max_sequences=1",
    ]


def train(folder: Path | str, steps: int, *options: str) -> str:
    """A run to its end; its output."""
    config = ("--config", "launch/configs/tiny-cpu.yaml")
    ended = launch(*config, *options, *settings(folder, steps), "checkpoint.every=1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The steps without what a clock measured."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]
