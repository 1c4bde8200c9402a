"""The tests that the documentation names as those that hold a promise are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEST = re.compile(r"tests/test_\w+\.py(?:::\w+)*")


def names(path: Path) -> set[str]:
    """All that pytest finds in a file of tests: `test_a`, and `TestB::test_c` of a class."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_tests_that_are_there(page: Path) -> None:
    for promised in TEST.findall(page.read_text()):
        file, _, name = promised.partition("::")
        assert (ROOT / file).exists(), promised
        assert not name or name in names(ROOT / file), promised


def test_every_fault_has_its_test() -> None:
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| --- ") and not row.endswith("| test |")]
    assert len(promises) > 20
    held = [row for row in promises if "tests/test_" in row or "`make chaos`" in row]
    assert [row.split("|")[1].strip() for row in promises if row not in held] == ["the head node is lost"]
