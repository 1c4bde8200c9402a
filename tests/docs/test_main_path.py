"""The main path of a step in CONTRIBUTING.md: its files exist, and are short enough to be read in one sitting."""

from __future__ import annotations

import re

from tests.support.places import ROOT

MOST_FILES, MOST_LINES = 12, 1500


def test_main_path_is_short() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## The main path")[2].partition("## ")[0]
    files = re.findall(r"^\d+\. `(.+?)`:", section, re.M)
    assert files[0] == "training/trainer.py"
    assert 10 <= len(files) <= MOST_FILES
    lines = {name: len((ROOT / "adagrpo_ray" / name).read_text(encoding="utf-8").splitlines()) for name in files}
    assert sum(lines.values()) <= MOST_LINES, lines
