"""Checks a complete list of pinned packages for another machine: whether each is there, and whether all fit together.

pip reads the metadata of each package (`--dry-run --no-deps`), for the Python and the platform of the list. It does not
resolve: the list is complete, so that a missing or wrong package shows in the requirements of the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHON = "3.12"  # of the image for GPUs
TAGS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)), "manylinux2014_x86_64", "linux_x86_64")
MARKERS = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{PYTHON}.3",
    "python_version": PYTHON,
    "sys_platform": "linux",
}


def pip_report(requirements: Path) -> dict[str, Any]:
    """pip's report on the packages of a list. Raises CalledProcessError with pip's errors if one is not there."""
    with TemporaryDirectory() as folder:
        target = ("--target", f"{folder}/target", "--python-version", PYTHON, "--implementation", "cp")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
        command += [*target, *(part for tag in TAGS for part in ("--platform", tag))]
        command += ["--report", f"{folder}/report.json", "-r", str(requirements)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        report: dict[str, Any] = json.loads(Path(folder, "report.json").read_text())
        return report


def conflicts(report: Mapping[str, Any], roots: Iterable[str]) -> list[str]:
    """The requirements that the packages of a report do not meet: those of `roots`, and of each other."""
    metadata = {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in report["install"]}
    found: list[str] = []
    seen: set[tuple[str, str]] = set()
    to_see = [(name, "") for name in metadata]

    def meet(text: str, of: str, extra: str) -> None:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({**MARKERS, "extra": extra}):
            return
        name = canonicalize_name(requirement.name)
        version = metadata[name]["version"] if name in metadata else None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{of} needs {requirement}, and the list has {version or 'none'}")
            return
        to_see.extend((name, extra) for extra in requirement.extras)

    for root in roots:
        meet(root, "the project", "")
    while to_see:
        name, extra = to_see.pop()
        if (name, extra) not in seen:
            seen.add((name, extra))
            package = metadata[name]
            for text in package.get("requires_dist", []):
                meet(text, f"{package['name']} {package['version']}", extra)
    return sorted(set(found))
