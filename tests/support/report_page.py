"""Parses the pages and figures of reports, and makes run folders for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from matplotlib.figure import Figure
from PIL import Image

from adagrpo_ray.reports import Run, read
from adagrpo_ray.reports.page import page
from adagrpo_ray.runs import EvaluationRecord, GroupSample, RunWriter, StepRecord, summarize
from tests.support.histories import evaluation, step

CHARTS = [
    "intervals",
    "accuracy-by-tokens",
    "accuracy-by-steps",
    "zero-std",
    "rescued",
    "reliability",
    "calibration",
    "tokens",
    "rewards",
    "phases",
    "staleness",
    "off-policy",
    "policy",
    "completions",
]


def make(
    folder: Path,
    steps: Sequence[StepRecord],
    evaluations: Sequence[EvaluationRecord] = (),
    samples: Sequence[GroupSample] = (),
    config: str = "run:\n  steps: 12\n",
    *,
    ended: bool = True,
) -> Path:
    """Make a run folder with these records."""
    with RunWriter(folder, config) as run:
        for record in evaluations:
            run.evaluation("", record)
        for number, record in enumerate(steps):
            run.step(record)
            if not number:
                run.samples(samples)
        if ended:
            ends = (evaluations[0], evaluations[-1]) if evaluations else (None, None)
            run.summary(summarize(steps, *ends, name=folder.name, folder=folder, adapter=folder / "adapter"))
    return folder


def words(*runs: Run) -> Page:
    """The page of these runs without its figures."""
    return Page(page(runs, []))


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, the cells of its table rows, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data

    def numbers(self) -> dict[str, str]:
        """The summary of a page of one run."""
        return {row[0]: row[1] for row in self.rows if len(row) == 2}


def page_of(place: str | Path) -> Page:
    return Page(Path(place).read_text(encoding="utf-8"))


def drawings(place: str | Path) -> list[ElementTree.Element]:
    """The figures of a page. Raises ParseError if one is not well formed."""
    text = Path(place).read_text(encoding="utf-8")
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def check_pictures(folder: Path, names: Sequence[str]) -> None:
    """Check that exactly these figures exist, can be decoded and show more than one colour."""
    assert sorted(path.name for path in (folder / "plots").iterdir()) == sorted(f"{name}.png" for name in names)
    for path in (folder / "plots").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.width == 1400
            assert len(set(picture.convert("L").resize((100, 40)).getdata())) > 3, path.name


def heights(figure: Figure, panel: int) -> list[float]:
    """The heights of the bars of a panel."""
    return [bar.get_height() for bars in figure.axes[panel].containers for bar in bars]  # type: ignore[attr-defined]


def two_runs(folder: Path) -> list[Run]:
    """A run of four steps that has ended, and one of two steps that has not."""
    shared = "model:\n  path: tiny\nalgorithm:\n  name: "
    steps = [step(n) for n in range(1, 5)]
    short = [step(n, resamples=(), rescued=(), reward=0.5) for n in (1, 2)]
    make(folder / "long", steps, [evaluation(0, 0.25), evaluation(4, 0.5)], config=f"{shared}adagrpo\n")
    make(folder / "short", short, [evaluation(0, 0.25)], config=f"{shared}grpo\n", ended=False)
    return [read(str(folder / name)) for name in ("long", "short")]
