"""Formats a comparison for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from adagrpo_ray.errors import ResourceError
from adagrpo_ray.evaluation.comparison import ACCURACY, LENGTHS, Comparison, Estimate
from adagrpo_ray.runs.judge_counts import tokens
from adagrpo_ray.runs.markdown import cell, literal
from adagrpo_ray.runs.wording import difficulties, few, printable, shown

JSON, MARKDOWN = "evaluation.json", "evaluation.md"
DIFFERENCES = ["accuracy", "difference", "better on", "worse on"]
"""The head of the table of differences."""
Rows = list[tuple[str, list[str]]]

LABELS = {
    "correct_answer_and_format": "correct answer and format",
    "correct_answer_anywhere": "correct answer anywhere",
    "correct_format": "correct format",
    "format_errors": "format errors",
    "cut_off": "cut off",
    "tokens": "mean length, tokens",
    "characters": "mean length, characters",
}


def report(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    """All models side by side, then their differences, within `width` characters if possible."""
    yield _about(comparison)
    yield grid(["", *(shown(model.name) for model in comparison.models)], metric_rows(comparison), width)
    if comparison.differences:
        yield ""
        yield grid(DIFFERENCES, difference_rows(comparison), width)
    yield ""
    yield comparison.confidence


def markdown(comparison: Comparison, settings: Mapping[str, Any]) -> str:
    """The comparison as a Markdown document, with the settings that it depends on."""
    text = ["# Evaluation", "", _about(comparison), ""]
    text += lines(["", *(shown(model.name) for model in comparison.models)], metric_rows(comparison))
    if comparison.differences:
        text += ["", *lines(DIFFERENCES, difference_rows(comparison))]
    text += ["", f"{comparison.confidence}.", "", "| model | folder | digest |", "| --- | --- | --- |"]
    text += [
        f"| {cell(literal(shown(m.name)))} | {cell(literal(printable(m.folder)))} | {m.digest[:12]} |"
        for m in comparison.models
    ]
    text += ["", "| setting | value |", "| --- | --- |"]
    text += [f"| {cell(key)} | {cell(literal(json.dumps(value)))} |" for key, value in settings.items()]
    return "\n".join(text) + "\n"


def save(folder: Path, comparison: Comparison, settings: Mapping[str, Any]) -> None:
    """Write the JSON and the Markdown file into `folder`, each atomically. Raises ResourceError if that fails."""
    content = {**comparison.to_dict(), "settings": dict(settings)}
    write(folder / JSON, json.dumps(content, indent=2, allow_nan=False) + "\n")
    write(folder / MARKDOWN, markdown(comparison, settings))


def write(path: Path, text: str) -> None:
    """Write a file atomically. Raises ResourceError if that fails."""
    aside = path.with_name(f"{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8", errors="replace")
        os.replace(aside, path)
    except OSError as error:
        raise ResourceError(
            f"cannot write {path} ({error.strerror or error}); free or unlock that place, then give the same command "
            "again"
        ) from error


def metric_rows(comparison: Comparison) -> Rows:
    """One row for each metric: its label, and a cell for each model."""
    models, n = comparison.models, comparison.samples
    rows: Rows = []
    for name in models[0].metrics:
        if name == "pass@1":  # equal to the accuracy
            continue
        label = f"accuracy (avg@{n})" if name == ACCURACY else LABELS.get(name, name)
        rows.append((label, [shown_estimate(model.metrics[name], name) for model in models]))
        if name == ACCURACY:
            named, others = few(
                difficulties(difficulty for model in models for difficulty in model.accuracy_by_difficulty)
            )
            for difficulty in named:
                of_models = [model.accuracy_by_difficulty[difficulty] for model in models]
                rows.append((f"  {shown(difficulty)}", [shown_estimate(estimate, name) for estimate in of_models]))
            rows += [(f"  {others}", ["" for _ in models])] if others else []
    if any(model.failed for model in models):
        rows.append(("problems failed", [str(model.failed) for model in models]))
    for name in dict.fromkeys(name for model in models for name in model.judges):
        of_judge = [model.judges.get(name, {}) for model in models]
        rows.append((f"{shown(name)}: requests", [f"{counts.get('requests', 0):,}" for counts in of_judge]))
        rows.append((f"{shown(name)}: tokens", [f"{tokens(counts):,}" for counts in of_judge]))
        if any("cost" in counts for counts in of_judge):
            rows.append((f"{shown(name)}: cost", [f"{counts.get('cost', 0):.4g}" for counts in of_judge]))
    return rows


def difference_rows(comparison: Comparison) -> Rows:
    """One row for each pair of models: the difference in accuracy, and the numbers of problems with either sign."""
    return [
        (
            f"{shown(d.second)} - {shown(d.first)}",
            [
                shown_estimate(d.metrics[ACCURACY], ACCURACY, signed=True),
                f"{d.better} of {comparison.problems}",
                f"{d.worse} of {comparison.problems}",
            ],
        )
        for d in comparison.differences
    ]


def _about(comparison: Comparison) -> str:
    return f"{comparison.problems} problems, {comparison.samples} completions of each"


def shown_estimate(estimate: Estimate, name: str, *, signed: bool = False) -> str:
    """The value and its interval: "0.512 [0.441, 0.583]", lengths with one decimal."""
    form = f"{'+' if signed else ''}.{1 if name in LENGTHS else 3}f"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def grid(head: Sequence[str], rows: Rows, width: int) -> Table:
    """A table without rules, so that it looks the same in every encoding; names left, numbers right.

    If it would be wider than `width` characters, intervals are below their values.
    """
    columns = range(len(head) - 1)
    needed = max(len(name) for name, _ in rows) + sum(2 + max(len(cells[i]) for _, cells in rows) for i in columns)
    if needed > width:
        rows = [(name, [cell.replace(" [", "\n[") for cell in cells]) for name, cells in rows]
    table = Table(box=None, padding=(0, 0, 0, 2))
    table.add_column(head[0], overflow="fold")
    for name in head[1:]:
        table.add_column(name, justify="right", overflow="fold")
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def lines(head: Sequence[str], rows: Rows) -> list[str]:
    """A table as the lines of Markdown."""
    return [
        f"| {' | '.join(map(cell, map(literal, head)))} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
        *(f"| {cell(literal(name.strip()))} | {' | '.join(cells)} |" for name, cells in rows),
    ]
