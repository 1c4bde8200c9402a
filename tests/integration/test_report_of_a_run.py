"""The report at the end of a run with faked training, and launch/report.py as a program."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from adagrpo_ray.config import Config
from adagrpo_ray.runs import Console, summarize
from adagrpo_ray.training import run as program
from tests.support.histories import step
from tests.support.places import TINY
from tests.support.report_page import page_of


class TestAtTheEndOfARun:
    def end(self, monkeypatch: pytest.MonkeyPatch, folder: Path, config: str = TINY) -> str:
        """The terminal output of a run whose training is faked."""

        def train(config: object, inputs: object, place: Path, observer: Console, *rest: object) -> object:
            observer.step(step(1))
            summary = summarize([step(1)], None, None, name=place.name, folder=place, adapter=place / "adapter")
            observer.summary(summary)
            return summary

        monkeypatch.setattr(program, "place_and_train", train)
        stream = io.StringIO()
        with Console(1, stream, terminal=True, width=200) as console:
            program.run(Config.load(config, [f"run.output_dir={folder}", "run.name=ended"]), console)
        return stream.getvalue()

    @pytest.mark.usefixtures("one_figure")
    def test_last_line_of_the_terminal_names_the_report(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
    ) -> None:
        shown = self.end(monkeypatch, tmp_path)
        assert re.search(rf"report: {re.escape(str(tmp_path))}/ended/report\.html\s*$", shown)
        assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h"), "the display did not begin again"
        assert page_of(tmp_path / "ended" / "report.html").numbers()["state"] == "finished"

    def test_failed_report_prints_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
    ) -> None:
        def full(figure: Figure) -> bytes:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("adagrpo_ray.reports.write.as_png", full)
        shown = self.end(monkeypatch, tmp_path)
        line = shown.splitlines()[-1]
        assert re.search(r"no report: cannot write .*/ended/plots \(No space left on device\)", line)
        assert f"launch/report.py makes one of {tmp_path}/ended" in line
        assert "Traceback" not in shown
        assert (tmp_path / "ended" / "summary.json").exists()
        assert not list((tmp_path / "ended").glob("plots*"))


def test_report_program_prints_its_help() -> None:
    ended = subprocess.run([sys.executable, "launch/report.py", "--help"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert all(word in ended.stdout for word in ("RUN", "--out FOLDER", "--interval N"))
