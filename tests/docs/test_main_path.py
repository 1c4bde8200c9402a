"""The main path of a step, as CONTRIBUTING.md lists it: its files are there, and few enough to be read in one go."""

from __future__ import annotations

import re

from tests.support.places import ROOT

MOST_FILES, MOST_LINES = 12, 1580


def test_the_main_path_can_be_read_in_one_go() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## The main path")[2].partition("## ")[0]
    files = re.findall(r"^\d+\. `(.+?)`:", section, re.M)
    assert files[0] == "training/trainer.py"
    assert 10 <= len(files) <= MOST_FILES
    lines = {name: len((ROOT / "adagrpo_ray" / name).read_text(encoding="utf-8").splitlines()) for name in files}
    assert sum(lines.values()) <= MOST_LINES, lines
