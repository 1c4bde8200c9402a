"""Formats the comparisons on several benchmarks as one table: a row for each benchmark, a column for each model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import RenderableType

from adagrpo_ray.evaluation.comparison import ACCURACY, CONFIDENCE, Comparison
from adagrpo_ray.evaluation.table import DIFFERENCES, Rows, difference_rows, grid, lines, shown_estimate, write
from adagrpo_ray.runs.wording import shown

JSON, MARKDOWN = "benchmarks.json", "benchmarks.md"
Comparisons = Mapping[str, Comparison]
"""The comparison of all models on each benchmark, by its name."""


def report(comparisons: Comparisons, width: int) -> Iterator[RenderableType]:
    """All models on all benchmarks, then their differences, within `width` characters if possible."""
    yield grid(_head(comparisons), _accuracy_rows(comparisons), width)
    if rows := _difference_rows(comparisons):
        yield ""
        yield grid(DIFFERENCES, rows, width)
    yield ""
    yield CONFIDENCE


def save(folder: Path, comparisons: Comparisons) -> None:
    """Write the table as JSON and Markdown into `folder`, each atomically. Raises ResourceError if that fails."""
    text = ["# Benchmarks", "", *lines(_head(comparisons), _accuracy_rows(comparisons))]
    if rows := _difference_rows(comparisons):
        text += ["", *lines(DIFFERENCES, rows)]
    text += ["", f"{CONFIDENCE}. The folder of each benchmark has its results in full.", ""]
    content = {name: comparison.to_dict() for name, comparison in comparisons.items()}
    write(folder / JSON, json.dumps(content, indent=2, allow_nan=False) + "\n")
    write(folder / MARKDOWN, "\n".join(text))


def _head(comparisons: Comparisons) -> list[str]:
    first = next(iter(comparisons.values()))
    return ["", *(shown(model.name) for model in first.models)]


def _accuracy_rows(comparisons: Comparisons) -> Rows:
    """Accuracy and pass@k of each benchmark, the share of completions that were cut off, and failed problems if any."""
    rows: Rows = []
    for name, comparison in comparisons.items():
        k, models = comparison.samples, comparison.models
        kinds = {f"{name} (avg@{k}, {comparison.problems:,} problems)": ACCURACY}
        kinds |= {f"  pass@{k}": f"pass@{k}"} if k > 1 else {}
        for label, kind in {**kinds, "  cut off": "cut_off"}.items():
            rows.append((label, [shown_estimate(model.metrics[kind], kind) for model in models]))
        if any(model.failed for model in models):
            rows.append(("  problems failed", [str(model.failed) for model in models]))
    return rows


def _difference_rows(comparisons: Comparisons) -> Rows:
    return [
        (f"{name}: {pair}", cells)
        for name, comparison in comparisons.items()
        for pair, cells in difference_rows(comparison)
    ]
