"""The page and the figures of the benchmark: docs/algorithm.md."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from adaptive_costs import COSTS, DRAWS, WINDOW, Point, smoothed
from adaptive_methods import METHODS
from adaptive_sections import SECTIONS, Section
from matplotlib.axes import Axes

from adagrpo_ray.reports.drawing import as_png, curve, panels, share, titled

XS = dict(zip(COSTS, ("generated tokens", "trained tokens", "seconds of training"), strict=True))

STEPS_OF_A_CURVE = 80
"""Points of a drawn curve, between which it is straight."""


@dataclass(frozen=True)
class SectionResults:
    """The results of a section, as they stand on the page.

    - `tables`, `sensitivities`: by case; the second ones are for other targets.
    - `at_edge`: methods whose learning rate lies at the edge of the tried ones.
    - `shared`: methods with the settings of another one, whose runs they share.
    - `missing`: number of missing runs; 0 in a complete section.
    """

    section: Section
    target: float
    methods: Sequence[str]
    seeds: int
    tables: Mapping[str, str]
    sensitivities: Mapping[str, str]
    at_edge: Sequence[str]
    shared: Mapping[str, str]
    commits: Sequence[str]
    missing: int


def draw(section: Section, curves: Mapping[str, Mapping[str, Sequence[Sequence[Point]]]], target: float) -> bytes:
    """A PNG with the median smoothed accuracy over the seeds by each cost, and a row of panels for each case.

    `curves` has the points of the runs by case and method. A curve ends with the shortest run of its method.
    """
    names = [name for name in METHODS if METHODS[name].drawn and any(name in methods for methods in curves.values())]
    figure, axes = panels(len(XS) * len(curves), names)
    for row, (case, methods) in enumerate(curves.items()):
        title = f"success rate {case}" if len(section.cases) > 1 else ""
        _row(axes[len(XS) * row : len(XS) * (row + 1)], title, methods, names, target)
    return as_png(figure)


def _row(
    places: Sequence[Axes],
    title: str,
    methods: Mapping[str, Sequence[Sequence[Point]]],
    names: Sequence[str],
    target: float,
) -> None:
    for axes, cost in zip(places, COSTS, strict=True):
        for number, name in enumerate(names):
            if name in methods:
                curve(axes, *median_curve(methods[name], cost), number)
        first = axes is places[0]
        titled(axes, title if first else "", XS[cost], "accuracy" if first else "")
        axes.axhline(target, color="grey", linewidth=0.6, linestyle=":")
        share(axes)


def median_curve(runs: Sequence[Sequence[Point]], cost: str) -> tuple[list[float], list[float | None]]:
    """The cost, and the median over the runs of the smoothed accuracy, linear between evaluations."""
    end = min(float(getattr(points[-1], cost)) for points in runs)
    grid = np.linspace(0.0, end, STEPS_OF_A_CURVE)
    lines = [np.interp(grid, [float(getattr(p, cost)) for p in points], smoothed(points)) for points in runs]
    return grid.tolist(), np.median(lines, axis=0).tolist()


def page(parts: Sequence[SectionResults], before: str = "") -> str:
    """The text of the page. Sections without `parts` are kept as they stand in `before`, the page as it was."""
    texts = {part.section.name: _section(part) for part in parts}
    found = {name: texts.get(name) or section_of(before, name) for name in SECTIONS}
    absent = [name for name, text in found.items() if not text]
    left_out = f"\n\nWithout finished runs yet: {', '.join(absent)}." if absent else ""
    sections = "\n\n".join(filter(None, found.values()))
    rows = "\n".join(f"| {name} | {method.about} |" for name, method in METHODS.items())
    return f"""# Benchmark of adaptive sampling

Made by `make bench-adaptive`; do not edit by hand.{left_out}

## How it is measured

- **Costs** are generated tokens, tokens trained on, and seconds of training. An update on a batch counts its completion
  tokens, so three updates count them three times. Seconds are those of the steps, without start-up and evaluations, and
  tokens of evaluations are not counted.
- **Reached** means that the mean accuracy of {WINDOW} evaluations in a row is at the target, so that one lucky
  evaluation does not count. The cost at that point is interpolated linearly between evaluations. All methods are
  evaluated on the same held-out prompts, with the same seeds.
- **Learning rates** are tuned for each method, in steps of half a decade. The best rate has the fewest runs that miss
  the target, then the fewest generated tokens. If it lies at the edge of the grid, the grid grows by up to two rates.
  {_of_others()}No final run has a seed of the tuning: {_tuning_seeds()}.
- **Tables** have the median over the seeds (smallest to largest of those that reached the target), "-" if half of the
  runs or more did not reach it.
- **To GRPO** is the quotient of the mean costs over the seeds, with a 95 % bootstrap interval: {DRAWS:,} draws of seeds
  with replacement, the same ones for both. With so few seeds it is rough. A run that did not reach the target counts
  with its whole cost, which is too little: then the quotient is at least (≥) or at most (≤) the number, or neither (?).

{sections}

## The methods

| method | |
| --- | --- |
{rows}
"""


def section_of(text: str, name: str) -> str:
    """The section `name` of a page, with its heading; "" if it has none."""
    found = re.search(rf"^## {re.escape(name)}\n.*?(?=\n+## |\n*\Z)", text, re.DOTALL | re.MULTILINE)
    return found[0] if found else ""


def _tuning_seeds() -> str:
    seeds = {name: " and ".join(map(str, section.tuning_seeds)) for name, section in SECTIONS.items()}
    return ", ".join(f"{found} (`{name}`)" for name, found in seeds.items() if found)


def _of_others() -> str:
    """The rows that are not tuned, with the method whose learning rate they have."""
    by_method: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        if method.rate_of is not None:
            by_method.setdefault(method.rate_of, []).append(name)
    return "".join(f"Not tuned, with the rate of {other}: {', '.join(names)}. " for other, names in by_method.items())


def _section(part: SectionResults) -> str:
    section, several = part.section, len(part.section.cases) > 1
    target = f"The target is an accuracy of {part.target:.3g}"
    if section.target is None:
        target += ", the median over the seeds of GRPO's at the end of its runs"
    notes = [f"Missing runs: {part.missing} or more." if part.missing else ""]
    if part.at_edge:
        notes.append(
            f"Warning: the learning rate of {', '.join(part.at_edge)} lies at the edge of those that were tried, so a "
            "better one may exist."
        )
    if part.shared:
        pairs = ", ".join(f"{method} ({other})" for method, other in part.shared.items())
        notes.append(f"These rows have the settings of another one and share its runs: {pairs}.")
    paragraphs = [
        f"## {section.name}",
        section.about,
        f"{target}. {part.seeds} seeds. The results of each seed and all curves are in "
        f"[results/{section.name}.json](results/{section.name}.json). The runs are of commit "
        f"{', '.join(part.commits)}, on {os.cpu_count()} CPU cores ({platform.machine()}, Python "
        f"{platform.python_version()}).",
        *filter(None, notes),
    ]
    for case in part.tables:
        paragraphs += [f"### Success rate {case}"] if several else []
        paragraphs.append(part.tables[case])
    paragraphs.append(f"![Accuracy by generated tokens, trained tokens and seconds](algorithm-{section.name}.png)")
    paragraphs.append("The influence of the target: generated tokens / seconds to GRPO for other targets.")
    for case in part.sensitivities:
        paragraphs += [f"Success rate {case}:"] if several else []
        paragraphs.append(part.sensitivities[case])
    return "\n\n".join(paragraphs)
