"""A killed process leaves none of its children behind, whenever they were started."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import psutil

# The guard starts first, as in a rollout actor, which may be killed while its engine starts.
PARENT = """
import subprocess, sys
from adagrpo_ray.cluster.children import ChildGuard

guard = ChildGuard()
inner = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline().strip(), guard._shell.pid, flush=True)
input()
guard.dismiss()
"""


PATIENCE_S = 120.0


def start() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start a process with a guard; return it, its child, its grandchild, and the shell of the guard."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]


def test_killed_process_takes_children_and_grandchildren_along() -> None:
    parent, started = start()
    with parent:
        assert len(started) == 3
        parent.kill()
    _, left = psutil.wait_procs(started, timeout=PATIENCE_S)
    assert left == []


def test_dismissed_guard_kills_nothing() -> None:
    parent, (*started, shell) = start()
    with parent:
        assert parent.stdin is not None
        print(file=parent.stdin, flush=True)
        assert parent.wait(timeout=PATIENCE_S) == 0
    assert not shell.is_running(), "the shell of the guard has ended"
    left = [process for process in started if process.is_running()]
    for process in left:
        process.kill()
    assert len(left) == 2


GUARDED = """
import subprocess, time
from adagrpo_ray.cluster.children import ChildGuard

one, other = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
guard = ChildGuard([one.pid])
print(one.pid, other.pid, guard._shell.pid, flush=True)
time.sleep(600)
"""


def test_guard_of_given_children_kills_only_those() -> None:
    with subprocess.Popen([sys.executable, "-c", GUARDED], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        one, other, shell = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
        parent.kill()
    try:
        _, left = psutil.wait_procs([one, shell], timeout=PATIENCE_S)  # to kill is the last that the shell does
        assert left == []
        assert other.is_running()
    finally:
        other.kill()


IN_A_TERMINAL = """
import time
from adagrpo_ray.cluster.children import ChildGuard

guard = ChildGuard()
try:
    print("ready", flush=True)
    while True:  # a signal just before a wait does not end it
        time.sleep(0.1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
guard.dismiss()
"""


def test_ctrl_c_reaches_process_outside_its_shells_group() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        for number in (signal.SIGINT, signal.SIGHUP):  # which who runs the tests may ignore, as nohup does
            signal.signal(number, signal.SIG_DFL)
        script = 'trap true INT; "$0" -c "$1"; echo "and over"'  # as in a Makefile: the shell leads the group
        os.execv("/bin/sh", ["sh", "-c", script, sys.executable, IN_A_TERMINAL])
    output = b""
    try:
        while b"ready" not in output:
            output += os.read(terminal, 1024)
        os.write(terminal, b"\x03")
        while b"and over" not in output:
            output += os.read(terminal, 1024)
    finally:
        os.close(terminal)  # which hangs up on all who are left there
        os.waitpid(pid, 0)
    assert b"interrupted" in output
