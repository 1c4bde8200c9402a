"""What a process that is killed leaves behind: nothing that it has started, whenever it did."""

from __future__ import annotations

import subprocess
import sys

import psutil

# With the guard first, as in a rollout actor: killed while its engine starts, it has told nobody of it.
PARENT = """
import subprocess, sys
from adagrpo_ray.children import ChildGuard

guard = ChildGuard()
inner = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
if sys.argv[1] == "leave":
    guard.dismiss()
else:
    input()
"""


def start(what: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A process with a guard, and its child and grandchild."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    return parent, [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]


def test_children_and_theirs_are_killed_with_the_process() -> None:
    parent, started = start("wait")
    with parent:
        assert len(started) == 2
        parent.kill()
    _, left = psutil.wait_procs(started, timeout=20)
    assert left == []


def test_a_guard_that_was_dismissed_kills_nobody() -> None:
    parent, started = start("leave")
    with parent:
        assert parent.wait(timeout=20) == 0
    _, left = psutil.wait_procs(started, timeout=1)
    for process in left:
        process.kill()
    assert len(left) == 2
