"""The tests that the documentation names for its promises exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.documents import names
from tests.support.places import ROOT

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEST = re.compile(r"\btest_\w+\.py(?:::\w+)*")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_tests_exist(page: Path) -> None:
    for promised in TEST.findall(page.read_text()):
        file, _, name = promised.partition("::")
        found = [*(ROOT / "tests").rglob(file)]
        assert len(found) == 1, promised
        assert not name or name in names(found[0]), promised


def test_each_documented_fault_has_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| --- ") and not row.endswith("| test |")]
    assert len(promises) > 20
    tested = [row for row in promises if TEST.search(row) or "`make chaos`" in row]
    assert [row.split("|")[1].strip() for row in promises if row not in tested] == ["the head node is lost"]
