"""Programs that wait at a known point until the test continues them, in a reward function that scores as `exact`."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.program import is_engine, metrics

MODULE = """
import json
import time
from collections import Counter
from pathlib import Path

from adagrpo_ray.rewards.registry import BUILTIN

HERE = Path(__file__).parent
passed = Counter()


def exact(completions, **context):
    plan = json.loads((HERE / "plan").read_text())
    file = Path(plan["file"])
    there = len(file.read_text().splitlines()) if file.exists() else -1
    for number, (lines, groups) in enumerate(plan["points"]):
        opened = HERE / f"open-{number}"
        if lines > there or opened.exists():
            continue
        passed[number] += 1
        if passed[number] > groups:
            (HERE / f"held-{number}").touch()
            while not opened.exists():
                time.sleep(0.02)
        break
    return BUILTIN["exact"](completions=completions, **context)
"""
NAME = "held:exact"
PATIENCE_S = 840.0  # limit for a condition to become true; the time limit of a test is usually lower


def until(condition: Callable[[], Any], running: subprocess.Popen[Any] | None = None) -> Any:
    """Wait until the condition is true; its value. Raises AssertionError if the program ends before, or time is up."""
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert running is None or running.poll() is None, (running.returncode, *running.communicate())
        assert time.monotonic() < end, f"the condition is still false after {PATIENCE_S:g} s"
        time.sleep(0.02)
    return value


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a program; wait for it at the end of the block, or kill it if the block raises, as it may wait forever."""
    with subprocess.Popen(command, **options) as running:
        try:
            yield running
        except BaseException:
            running.kill()
            raise


def engines(under: int | None = None) -> list[psutil.Process]:
    """vLLM's live engine processes among the descendants of this process, or of the process `under`."""
    found = psutil.Process(under).children(recursive=True)
    return [process for process in found if is_engine(process)]


@dataclass(frozen=True)
class Gate:
    """A gate at which programs with `settings` wait; `folder` must be in their PYTHONPATH.

    It is closed at points. A point is a number of lines in a file, and a number of groups that are scored after the
    file has these lines. One process scores one group after another, so that a point is the same in every run.
    """

    folder: Path

    def close(self, file: Path, *points: tuple[int, int]) -> None:
        """Make programs wait at these points, one after the other."""
        (self.folder / "held.py").write_text(MODULE)
        for name in ("held", "open"):
            for left in self.folder.glob(f"{name}-*"):
                left.unlink()
        (self.folder / "plan").write_text(json.dumps({"file": str(file), "points": points}))

    @property
    def settings(self) -> list[str]:
        """Settings of a program that waits; the wait has no time limit."""
        return [f"rewards.functions=[{{function: '{NAME}'}}]", "rewards.timeout_s=3600"]

    def holds(self, point: int = 0) -> bool:
        """Whether a program has reached the point, even if it is open by now."""
        return (self.folder / f"held-{point}").exists()

    def wait(self, running: subprocess.Popen[Any], point: int = 0) -> None:
        """Wait until the program has reached the point."""
        until(lambda: self.holds(point), running)

    def open(self, point: int = 0) -> None:
        """Open the point, so that the program continues; it stays open."""
        (self.folder / f"open-{point}").touch()


def plain(text: str) -> str:
    """A text of a program that waited, with the name of the function replaced by that in other programs."""
    return text.replace(NAME, "exact")


def assert_same_run(folder: Path, whole: Path) -> None:
    """Check that the run in `folder`, which may have waited at a gate, is identical to the one in `whole`."""
    assert json.loads(plain(json.dumps(metrics(folder)))) == metrics(whole)
    assert plain((folder / "samples.jsonl").read_text()) == (whole / "samples.jsonl").read_text()
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (whole / adapter).read_bytes()
