"""Runs the tests that inject faults repeatedly on a busy machine: python -m tests.support.repeated

Each test runs `--times` times in a row, two files at a time, while two busy loops use the CPU. Other arguments are
passed to pytest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Run busy loops, each in a process of its own, within the block."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="runs of each test (default: 10)")
    parser.add_argument("--slow", action="store_true", help="include slow tests")
    given, others = parser.parse_known_args()
    command = [
        *(sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
        *("-m", "faults" if given.slow else "faults and not slow"),
        *("--count", str(given.times), "--repeat-scope", "function"),
    ]
    with busy(2):
        return subprocess.run([*command, *others], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
