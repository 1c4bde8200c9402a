"""The pinned packages for GPUs exist and fit together, as the package index has them."""

from __future__ import annotations

import subprocess
import tomllib

import pytest

from tests.support.pins import conflicts, pip_report
from tests.support.places import ROOT

UNREACHABLE = ("Temporary failure", "ConnectionError", "NewConnectionError", "Network is unreachable", "timed out")


@pytest.mark.slow  # minutes, and without an index with separate metadata gigabytes
@pytest.mark.timeout(3600)
def test_packages_for_gpus_exist_and_fit_together() -> None:
    try:
        report = pip_report(ROOT / "requirements/gpu.txt")
    except subprocess.CalledProcessError as error:
        if any(sign in error.stderr for sign in UNREACHABLE):
            pytest.skip(f"NOT CHECKED: pip reaches no package index ({error.stderr.strip().splitlines()[-1]})")
        raise AssertionError(error.stderr) from error
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    roots = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    assert len(report["install"]) > 200
    assert conflicts(report, roots) == []
