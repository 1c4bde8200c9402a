"""Writes the table, the plot and the file of results of the algorithm benchmark."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Point(Protocol):
    """An evaluation of a run: generated tokens and seconds before it, and the accuracy."""

    tokens: int
    seconds: float
    accuracy: float


Runs = dict[str, dict[str, list[list[Any]]]]  # setting -> method -> for each seed a curve of Points
BASE = "grpo"
OTHER_TARGETS = (0.5, 0.7, 0.8, 0.9)


def results(curves: Runs, target: float) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """The content of docs/results/algorithm.json: one entry for each seed, None if the target was never reached."""

    def first(points: Sequence[Point], of: Callable[[Point], float]) -> float | None:
        return next((of(p) for p in points if p.accuracy >= target), None)

    return {
        setting: {
            method: {
                "tokens_to_target": [first(points, lambda p: p.tokens) for points in runs],
                "seconds_to_target": [first(points, lambda p: p.seconds) for points in runs],
                "final_accuracy": [points[-1].accuracy for points in runs],
            }
            for method, runs in methods.items()
        }
        for setting, methods in curves.items()
    }


def median(values: Sequence[float | None]) -> float:
    """The median; None, a seed that never reached the target, counts as infinity."""
    return statistics.median(math.inf if value is None else value for value in values)


def _ratio(value: float, base: float) -> str:
    """The quotient, or "-" if one of the two medians is infinite."""
    return f"{value / base:.2f}" if math.isfinite(value) and math.isfinite(base) else "-"


def table(found: dict[str, dict[str, dict[str, list[float | None]]]]) -> str:
    """A Markdown table: medians with their range over the seeds, and ratios of medians to GRPO's."""

    def spread(values: Sequence[float | None], form: str) -> str:
        known = [value for value in values if value is not None]
        middle = median(values)
        shown = "-" if math.isinf(middle) else format(middle, form)
        return f"{shown} ({format(min(known), form)} to {format(max(known), form)})" if known else shown

    def ratio(values: Sequence[float | None], base: Sequence[float | None]) -> str:
        return _ratio(median(values), median(base))

    lines = [
        "| success rate | method | reached | generated tokens | to GRPO | seconds | to GRPO | final accuracy |",
        "| --- " * 8 + "|",
    ]
    for setting, methods in found.items():
        base = methods.get(BASE)
        for method, r in methods.items():
            tokens, seconds, final = r["tokens_to_target"], r["seconds_to_target"], r["final_accuracy"]
            cells = [
                setting,
                method,
                f"{sum(t is not None for t in tokens)} of {len(tokens)}",
                spread(tokens, ",.0f"),
                ratio(tokens, base["tokens_to_target"]) if base else "-",
                spread(seconds, ".1f"),
                ratio(seconds, base["seconds_to_target"]) if base else "-",
                spread(final, ".2f"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sensitivity(curves: Runs) -> str:
    """A Markdown table: ratios of medians to GRPO's, of tokens and seconds, for other target accuracies."""
    lines = ["| success rate | method | " + " | ".join(f"at {target:g}" for target in OTHER_TARGETS) + " |"]
    lines.append("| --- " * (2 + len(OTHER_TARGETS)) + "|")
    by_target = [results(curves, target) for target in OTHER_TARGETS]
    for setting, methods in curves.items():
        for method in methods if BASE in methods else []:
            cells = []
            for found in by_target:
                own, base = found[setting][method], found[setting][BASE]
                keys = ("tokens_to_target", "seconds_to_target")
                cells.append(" / ".join(_ratio(median(own[key]), median(base[key])) for key in keys))
            lines.append("| " + " | ".join([setting, method, *cells]) + " |")
    return "\n".join(lines)


def plot(curves: Runs, target: float, path: Path) -> None:
    """Plot the median held-out accuracy over the seeds against tokens and seconds, with one row for each setting."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "algorithm"  # makes the file reproducible
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(curves), 2, figsize=(11, 3.4 * len(curves)), squeeze=False, sharey=True)
    for row, (setting, methods) in enumerate(curves.items()):
        for axis, key in zip(axes[row], ("tokens", "seconds"), strict=True):
            for method, runs in methods.items():
                end = min(getattr(points[-1], key) for points in runs)
                grid = np.linspace(0.0, end, 200)
                # Between two evaluations a run has the accuracy of the earlier one.
                accuracies = [
                    np.array([p.accuracy for p in points])[
                        np.searchsorted([getattr(p, key) for p in points], grid, side="right") - 1
                    ]
                    for points in runs
                ]
                axis.plot(
                    grid, np.median(accuracies, axis=0), label=method, linewidth=2.0 if method == "adagrpo" else 1.2
                )
            axis.axhline(target, color="grey", linewidth=0.6, linestyle=":")
            axis.set_xlabel("generated tokens" if key == "tokens" else "seconds of training")
        axes[row][0].set_ylabel(f"held-out accuracy\nfrom a success rate of {setting}")
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write_report(docs: Path, curves: Runs, rates: dict[str, str], target: float) -> None:
    """Write results/algorithm.json, algorithm.svg and algorithm.md into `docs`, and print the table."""
    (docs / "results").mkdir(parents=True, exist_ok=True)
    found = results(curves, target)
    (docs / "results" / "algorithm.json").write_text(json.dumps(found, indent=2) + "\n")
    plot(curves, target, docs / "algorithm.svg")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    seeds = len(next(iter(next(iter(curves.values())).values())))
    chosen = ", ".join(f"{method} {rate}" for method, rate in rates.items())
    text = f"""# Benchmark of adaptive sampling

Made by `make bench-algorithm` at commit {git.stdout.strip() or "unknown"} on {os.cpu_count()} CPU cores
({platform.machine()}, Python {platform.python_version()}); do not edit by hand. The results of each seed are in
[results/algorithm.json](results/algorithm.json). Method: `{sys.argv[0].split("/")[-1]} --help`.

Generated tokens and seconds of training until the held-out accuracy first reached {target:g}; median over {seeds} seeds
(smallest to largest of those that reached it), and the ratio of medians to GRPO's. Start-up and evaluations are not in
the seconds.

{table(found)}

Learning rates, tuned on other seeds: {chosen}.

The dependence on the target: ratios of medians to GRPO's, tokens / seconds, for other accuracies ("-": one of
the two did not reach it in half of its runs).

{sensitivity(curves)}

![accuracy against generated tokens and seconds](algorithm.svg)
"""
    (docs / "algorithm.md").write_text(text)
    print(table(found))
