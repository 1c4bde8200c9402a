"""Reports of records made by hand, with all figures drawn, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_origin, get_type_hints

from adagrpo_ray.reports import read, write_report
from adagrpo_ray.runs import StepRecord
from tests.support.histories import attempt, evaluation, group, step
from tests.support.report_page import CHARTS, check_pictures, drawings, make, page_of, two_runs

EVIL = "<script>alert('$x^2$')</script>"


def test_report_of_a_run_without_measured_metrics(tmp_path: Path) -> None:
    """All optional metrics are None, and there is no reward function, no difficulty and no rung."""
    hints = get_type_hints(StepRecord)
    unknown = {name: None for name, hint in hints.items() if hint == float | None}
    empty = {name: {} for name, hint in hints.items() if get_origin(hint) is Mapping}
    assert unknown
    assert empty.keys() >= {"rewards_mean", "time"}
    nothing = step(1, **{**unknown, **empty, "resamples": (), "rescued": (), "step_time": 0.0})
    folder = make(tmp_path / "run", [replace(nothing, step=n) for n in range(1, 61)], ended=False)
    page = page_of(write_report([read(str(folder))], str(folder)))
    absent = ("rescued", "reliability", "calibration", "rewards", "phases")
    check_pictures(folder, [name for name in CHARTS if name not in absent])
    assert "nan" not in page.text.lower()
    assert page.numbers()["generated tokens per second"] == "-"


def test_report_leaves_the_state_of_matplotlib_unchanged(tmp_path: Path) -> None:
    """Runs in a process of its own, in which nothing else has used matplotlib."""
    run = str(make(tmp_path / "run", [step(1), step(2)], [evaluation(0, 0.25)], [group(1)]))
    script = (
        "import sys, matplotlib; before = list(dict.items(matplotlib.rcParams))\n"
        "from adagrpo_ray.reports import read, write_report\n"
        f"write_report([read({run!r})], {run!r})\n"
        "print('matplotlib.pyplot' in sys.modules, before == list(dict.items(matplotlib.rcParams)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("False True\n", "")


def test_texts_of_a_run_are_escaped(tmp_path: Path) -> None:
    sample = group(
        1,
        attempt([0.0], trained=False, text=EVIL),
        attempt([1.0, 0.0], 0, text=EVIL),
        prompt=EVIL,
        difficulty=EVIL,
        answer=EVIL,
    )
    steps = [
        step(n, rewards_mean={EVIL: 0.5, "_a": 0.1}, accuracy_by_difficulty={EVIL: 0.5, "$\\frac$": 0.1})
        for n in (1, 2)
    ]
    folder = make(tmp_path / "a&b", steps, [evaluation(0, 0.5)], [sample], f"note: {json.dumps(EVIL)}\n")
    place = write_report([read(str(folder))], str(folder))
    page = page_of(place)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count(EVIL) >= 6
    assert len(drawings(place)) == len(CHARTS)


def test_report_compares_several_runs(tmp_path: Path) -> None:
    place = write_report(two_runs(tmp_path), str(tmp_path / "report"))
    rows = page_of(place).rows
    assert ["", "long", "short"] in rows
    assert ["state", "finished", "not finished"] in rows
    assert ["tokens generated", "16,000", "8,000"] in rows
    assert ["algorithm.name", "adagrpo", "grpo"] in rows
    assert not [row for row in rows if row[0] == "model.path"]
    check_pictures(tmp_path / "report", CHARTS)
