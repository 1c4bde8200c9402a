"""The tests that inject faults, again and again on a busy machine: python -m tests.repeated

Two loops take all the CPU that they get meanwhile. Prints one line a round and writes the output of a round that failed
to runs/repeated/. Exits with 1 if any round failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OUT = Path("runs/repeated")


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Processes that do nothing, as fast as they can."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def passes(number: int, marks: str, given: list[str]) -> bool:
    """Whether one round is green."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-m", marks, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _, _, last = done.stdout.strip().rpartition("\n")
    print(f"round {number}: {time.monotonic() - began:.0f} s, {last}", flush=True)
    if done.returncode != 0:
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"{number}.txt").write_text(done.stdout + done.stderr)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="rounds (default: 10)")
    parser.add_argument("--slow", action="store_true", help="slow tests too")
    parser.add_argument("files", nargs="*", help="files of tests (default: all)")
    given = parser.parse_args()
    marks = "faults" if given.slow else "faults and not slow"
    with busy(2):
        green = [passes(number + 1, marks, given.files) for number in range(given.times)]
    print(f"{sum(green)} of {len(green)} rounds were green")
    return 0 if all(green) else 1


if __name__ == "__main__":
    sys.exit(main())
