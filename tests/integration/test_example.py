"""docs/examples/one_process.py: the whole algorithm in one process, as a reader starts it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "one_process.py"
LINE = re.compile(
    r"step (\d+): accuracy (\d\.\d\d), (\d+) resamples rescued (\d+) groups, (\d+) completions trained, "
    r"loss (\S+), version (\d+) \(([0-9a-f]{8})\), \d+\.\d s"
)


def test_the_example_is_short_and_imports_no_ray() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 200
    modules = {
        name
        for node in ast.walk(ast.parse(source))
        for name in ([str(node.module)] if isinstance(node, ast.ImportFrom) else [])
        + ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
    }
    assert {name for name in modules if re.search(r"\bray\b|\.(actor|pool|fleet|trainer)$", name)} == set()


@pytest.mark.long
def test_the_example_trains_and_every_step_syncs_new_weights(tiny_model: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLE), "3"], capture_output=True, text=True, cwd=ROOT, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    steps = [found.groups() for line in ended.stdout.splitlines() if (found := LINE.fullmatch(line))]
    assert [(int(step), int(version)) for step, *_, version, _ in steps] == [(1, 1), (2, 2), (3, 3)]
    assert len({digest for *_, digest in steps}) == 3  # each step changed the adapter
    for _, accuracy, resamples, rescued, trained, loss, *_ in steps:
        assert 0 <= float(accuracy) <= 1
        assert int(rescued) <= int(resamples)
        assert int(trained) > 0
        assert abs(float(loss)) < 10
    assert sum(int(resamples) for _, _, resamples, *_ in steps) > 0
