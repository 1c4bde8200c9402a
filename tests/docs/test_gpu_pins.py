"""The pinned packages for GPUs exist and fit together, as the package index has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.places import ROOT

PINS = ROOT / "requirements/gpu.txt"
UNREACHABLE = ("error sending request", "Failed to fetch", "Could not connect", "dns error", "timed out")
IMAGE = ("--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_39")
"""Python and system of the image for GPUs (docker/Dockerfile)."""


def resolved(*requirements: str) -> str:
    """The pinned packages that uv finds for these files of requirements, a line each.

    Raises CalledProcessError with uv's reason if there are none. Skips the test if no package index can be reached.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *IMAGE]
    ended = subprocess.run([*command, *requirements], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode and any(sign in ended.stderr for sign in UNREACHABLE):
        pytest.skip(f"NOT CHECKED: uv reaches no package index ({ended.stderr.strip().splitlines()[-1]})")
    ended.check_returncode()
    return ended.stdout


def pins(listed: str) -> dict[str, str]:
    """The versions of a list, by the normalised names of the packages."""
    lines = (line.split("==") for line in listed.splitlines() if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in lines}


def test_packages_for_gpus_exist_and_fit_together() -> None:
    found = pins(resolved(str(PINS), "pyproject.toml", "--extra", "gpu"))
    assert len(found) > 200
    assert found == pins(PINS.read_text()), "a complete list resolves to itself"


def test_packages_that_do_not_fit_together_are_found(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("ray==2.60.0\nclick==6.7")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        resolved(str(tmp_path / "pins.txt"))
    assert "depends on click>=7.0" in caught.value.stderr
