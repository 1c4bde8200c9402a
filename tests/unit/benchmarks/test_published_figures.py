"""The figures of the benchmark in the documentation are those of the published results."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from adaptive_costs import COSTS, Point, ratio
from adaptive_methods import BASE
from adaptive_page import section_of
from adaptive_report import shown_ratio
from adaptive_sections import SECTIONS

from tests.support.places import ROOT

DOCS = ROOT / "docs"
PUBLISHED = [name for name in SECTIONS if (DOCS / "results" / f"{name}.json").is_file()]
FIGURE = r"(\d\.\d\d \[\d\.\d\d, \d\.\d\d\])"


@cache
def results(section: str) -> dict[str, Any]:
    """The published results of a section, by case and method."""
    found = json.loads((DOCS / "results" / f"{section}.json").read_text())
    return found if len(SECTIONS[section].cases) > 1 else dict.fromkeys(SECTIONS[section].cases, found)


def ratios(section: str, case: str, method: str) -> list[str]:
    """The ratios of a method to GRPO, by cost, as in the tables: computed from the published curves."""
    entry, base = results(section)[case][method], results(section)[case][BASE]
    own, others = ([[Point(**point) for point in run] for run in e["curve"]] for e in (entry, base))
    return [shown_ratio(ratio(own, others, entry["target"], cost)) for cost in COSTS]


def on_page(section: str, case: str) -> dict[str, list[str]]:
    """The ratios of each method in the table of a case of docs/algorithm.md."""
    text = section_of((DOCS / "algorithm.md").read_text(), section)
    if len(SECTIONS[section].cases) > 1:
        text = text.partition(f"### Success rate {case}\n")[2]
    lines = text.partition("| --- ")[2].partition("\n\n")[0].splitlines()[1:]
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: [row[3], row[5], row[7]] for row in rows}


def prose(page: str) -> str:
    return " ".join((ROOT / page).read_text().split())


def numbers(figures: list[str]) -> list[float]:
    return [float(number) for figure in figures for number in re.findall(r"\d+\.\d+", figure)]


@pytest.mark.parametrize("section", PUBLISHED)
def test_tables_are_those_of_the_published_curves(section: str) -> None:
    for case in SECTIONS[section].cases:
        rows = on_page(section, case)
        assert list(rows) == list(results(section)[case])
        for method, figures in rows.items():
            expected = ratios(section, case, method)
            assert [f[0] for f in figures] == [f[0] for f in expected], (case, method)
            # The published accuracies are rounded, so that the last digit may differ.
            assert numbers(figures) == pytest.approx(numbers(expected), abs=0.011), (case, method)


@pytest.mark.parametrize(
    ("page", "section", "sentence"),
    [
        (
            "README.md",
            "skills",
            rf"0\.8 with {FIGURE} of the generated tokens and {FIGURE} of the time that GRPO needs",
        ),
        ("README.md", "real", rf"SmolLM2 needs {FIGURE} of GRPO's tokens and {FIGURE} of its time"),
        ("docs/adaptive.md", "skills", rf"needs {FIGURE} of GRPO's generated tokens and {FIGURE} of its time"),
    ],
)
def test_text_has_the_figures_of_the_table(page: str, section: str, sentence: str) -> None:
    found = re.search(sentence, prose(page))
    assert found, sentence
    tokens, _, seconds = on_page(section, next(iter(SECTIONS[section].cases)))["adagrpo"]
    assert [*found.groups()] == [re.sub(r"^\W+", "", figure) for figure in (tokens, seconds)]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("Pilot-Commit", "pilot-commit"),
        ("DAPO", "dapo"),
        ("the published rule of adaGRPO", "adagrpo-published"),
        ("Reinforce-Ada", "reinforce-ada"),
    ],
)
def test_text_has_the_figures_of_other_methods_on_a_real_model(name: str, method: str) -> None:
    found = re.search(rf"{name} on \w+ seed \((\d\.\d\d), (\d\.\d\d)\)", prose("README.md"))
    assert found, name
    tokens, _, seconds = on_page("real", "all")[method]
    assert [*found.groups()] == [re.sub(r"^\W+", "", figure).partition(" ")[0] for figure in (tokens, seconds)]


def test_parts_of_the_defaults_have_the_figures_of_their_rows() -> None:
    table = on_page("skills", "all")
    rows = re.findall(r"\| `(adagrpo-[\w-]+)` \| (\d\.\d\d) / (\d\.\d\d) \|", prose("docs/adaptive.md"))
    assert len(rows) >= 4
    for method, *figures in rows:
        assert figures == [table[method][place].partition(" ")[0] for place in (0, 2)]
