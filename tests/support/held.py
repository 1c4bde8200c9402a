"""A program that waits at a known point until the test lets it go on: in a reward function, which scores as `exact`."""

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
PATIENCE_S = 840.0  # for a condition to come true, however busy the machine is: the test ends before, if it is late


def until(condition: Callable[[], Any], running: subprocess.Popen[Any] | None = None) -> Any:
    """What the condition gives once it holds; AssertionError if the program ends before, or if it takes too long."""
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert running is None or running.poll() is None, (running.returncode, *running.communicate())
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)
    return value


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program that is waited for at the end of the block, and killed if the block raises: it may wait for ever."""
    with subprocess.Popen(command, **options) as running:
        try:
            yield running
        except BaseException:
            running.kill()
            raise


def engines(under: int | None = None) -> list[psutil.Process]:
    """vLLM's live engine processes under this process, or under the one of this number."""
    found = psutil.Process(under).children(recursive=True)
    return [process for process in found if is_engine(process)]


@dataclass(frozen=True)
class Gate:
    """A gate that programs with `settings` wait at; `folder` must be in their PYTHONPATH.

    It is closed at points, each of which is a number of lines in a file and a number of groups: those that are scored
    after the file has so many lines. One process scores one group after another, so they are the same in every run.
    """

    folder: Path

    def close(self, file: Path, *points: tuple[int, int]) -> None:
        """Have programs wait at these points, one after the other."""
        (self.folder / "held.py").write_text(MODULE)
        for name in ("held", "open"):
            for left in self.folder.glob(f"{name}-*"):
                left.unlink()
        (self.folder / "plan").write_text(json.dumps({"file": str(file), "points": points}))

    @property
    def settings(self) -> list[str]:
        """Settings of a program that waits; no time limit ends the wait."""
        return [f"rewards.functions=[{{function: '{NAME}'}}]", "rewards.timeout_s=3600"]

    def holds(self, point: int = 0) -> bool:
        """Whether a program has come to the point; in the end it has come to those that are open, too."""
        return (self.folder / f"held-{point}").exists()

    def wait(self, running: subprocess.Popen[Any], point: int = 0) -> None:
        """Return when the program waits at the point."""
        until(lambda: self.holds(point), running)

    def open(self, point: int = 0) -> None:
        """Let it go on; there, the gate stays open."""
        (self.folder / f"open-{point}").touch()


def plain(text: str) -> str:
    """A text of a program that waited, with the name that the function has in others."""
    return text.replace(NAME, "exact")


def assert_same_run(folder: Path, whole: Path) -> None:
    """The run in `folder`, which may have waited at a gate, ended as the one in `whole`, to the last bit."""
    assert json.loads(plain(json.dumps(metrics(folder)))) == metrics(whole)
    assert plain((folder / "samples.jsonl").read_text()) == (whole / "samples.jsonl").read_text()
    adapter = "adapter/adapter_model.safetensors"
    assert (folder / adapter).read_bytes() == (whole / adapter).read_bytes()
