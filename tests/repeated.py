"""The tests that inject faults, again and again on a busy machine: python -m tests.repeated

Each file runs `--times` times while two loops take all the CPU that they get. Prints one line a run and writes the
output of a failed one to runs/repeated/; exits with 1 after the first failure of each file.
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
FILES = (
    *("background", "children", "end_to_end", "evaluate", "fleet", "full_disk", "gather", "given", "multi_node"),
    *("notebook", "pool", "restarts", "resume", "reward_failures", "run", "scorer", "storage", "submit", "tracking"),
    *("trainer", "weight_sync"),
)


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


def passes(name: str, number: int, slow: bool) -> bool:
    """Whether one run of a file is green."""
    began, marks = time.monotonic(), [] if slow else ["-m", "not slow and not ui and not real"]
    command = [sys.executable, "-m", "pytest", "-q", f"tests/test_{name}.py", *marks]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _, _, last = done.stdout.strip().rpartition("\n")
    print(f"{name} {number}: {time.monotonic() - began:.0f} s, {last}", flush=True)
    if green := done.returncode in (0, 5):  # 5: all of its tests are slow
        return green
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}-{number}.txt").write_text(done.stdout + done.stderr)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="runs of each file")
    parser.add_argument("--slow", action="store_true", help="slow tests too")
    parser.add_argument("files", nargs="*", default=FILES, help="test_NAME.py by their NAMEs")
    given = parser.parse_args()
    with busy(2):
        red = [name for name in given.files if not all(passes(name, n + 1, given.slow) for n in range(given.times))]
    print(f"failed: {', '.join(red)}" if red else f"{len(given.files)} files were green {given.times} times each")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
