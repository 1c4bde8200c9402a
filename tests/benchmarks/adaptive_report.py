"""The results of the benchmark as JSON and as tables, from the files of finished runs; it starts none.

    python tests/benchmarks/adaptive.py --report

docs/results/SECTION.json has for each method, and in the section `uniform` for each case, lists by seed:
`tokens_to_target`, `trained_tokens_to_target`, `seconds_to_target` (null: not reached), `final_accuracy`,
`final_accuracy_by_class`, `errors` ("": none) and `curve`, the points of the run; and `target`, `learning_rate` and
`learning_rate_at_edge`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

from adaptive_costs import COSTS, Point, Ratio, cost_to, ratio, smoothed
from adaptive_methods import BASE
from adaptive_page import SectionResults, draw, page
from adaptive_runs import Plan, Result

OTHER_TARGETS = (-0.2, -0.1, -0.05, 0.05)
"""Differences to the target, for the table of its influence."""

Curves = dict[str, list[tuple[Point, ...]]]
"""Method -> the points of its runs, in the order of the seeds from 0."""


def finished(plan: Plan, case: str) -> dict[str, list[Result]]:
    """The final runs of each method by seed, up to the first seed that is missing; methods without any are left out."""
    found = {method: plan.final(method) for method in plan.methods}
    runs = {
        method: [result for result in takewhile(bool, results[case]) if result is not None]
        for method, results in found.items()
        if results is not None
    }
    return {method: results for method, results in runs.items() if results}


def as_json(plan: Plan) -> dict[str, Any]:
    """The content of SECTION.json: by method, or by case and method if the section has several cases."""
    by_case = {
        case: {method: _of_method(plan, method, results) for method, results in finished(plan, case).items()}
        for case in plan.section.cases
    }
    return by_case if len(by_case) > 1 else next(iter(by_case.values()))


def _of_method(plan: Plan, method: str, results: Sequence[Result]) -> dict[str, Any]:
    target, tuned = plan.target, plan.tuned(method)
    if target is None or tuned is None:
        raise ValueError(f"{plan.section.name} {method} has final runs without a target and a learning rate")
    curves = [result.points for result in results]
    return {
        "target": target,
        "learning_rate": float(tuned.rate),
        "learning_rate_at_edge": tuned.at_edge,
        **{f"{cost}_to_target": [_cost(points, target, cost) for points in curves] for cost in COSTS},
        "final_accuracy": [smoothed(points)[-1] for points in curves],
        "final_accuracy_by_class": [dict(points[-1].by_class) for points in curves],
        "errors": [result.error for result in results],
        "curve": [[_rounded(point) for point in points] for points in curves],
    }


def _cost(points: Sequence[Point], target: float, cost: str) -> float | None:
    found = cost_to(points, target, cost)
    return None if found is None else round(found, 3)


def _rounded(point: Point) -> dict[str, Any]:
    values = {key: value for key, value in asdict(point).items() if key != "by_class"}
    return values | {"accuracy": round(point.accuracy, 5)}


def table(plan: Plan, case: str, target: float) -> str:
    """A Markdown table of the methods: medians with their range over the seeds, and ratios of means to the base."""
    lines = [
        "| method | reached | generated tokens | to GRPO | trained tokens | to GRPO | seconds | to GRPO "
        "| final accuracy | learning rate |",
        "| --- " * 10 + "|",
    ]
    runs = finished(plan, case)
    base = [result.points for result in runs.get(BASE, [])]
    for method, results in runs.items():
        tuned, curves = plan.tuned(method), [result.points for result in results]
        diverged = sum(bool(result.error) for result in results)
        reached = sum(cost_to(points, target, "tokens") is not None for points in curves)
        cells = [method, f"{reached} of {len(curves)}{f' ({diverged} diverged)' if diverged else ''}"]
        for cost in COSTS:
            found = [cost_to(points, target, cost) for points in curves]
            cells += [spread(found, "{:,.1f}" if cost == "seconds" else "{:,.0f}")]
            cells += [shown_ratio(ratio(curves, base, target, cost) if base else None)]
        cells += [spread([smoothed(points)[-1] for points in curves], "{:.3f}")]
        cells += [f"{tuned.rate}{' (edge)' if tuned.at_edge else ''}" if tuned else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float | None], form: str) -> str:
    """The median, and the smallest and largest known value; "-" as the median if it is None, which is never reached."""
    known = [value for value in values if value is not None]
    middle = statistics.median(math.inf if value is None else value for value in values)
    text = "-" if math.isinf(middle) else form.format(middle)
    return f"{text} ({form.format(min(known))} to {form.format(max(known))})" if known else text


def shown_ratio(found: Ratio | None) -> str:
    """The ratio with its interval, after its sign if it is only a bound: at least, at most, or neither."""
    if found is None:
        return "-"
    sign = {(False, False): "", (True, False): "≥ ", (False, True): "≤ ", (True, True): "? "}
    return f"{sign[found.own_bounded, found.base_bounded]}{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def sensitivity(plan: Plan, case: str, target: float) -> str:
    """A Markdown table of ratios to the base for other targets: generated tokens / seconds."""
    targets = [target + offset for offset in OTHER_TARGETS if target + offset < 1]
    lines = ["| method | " + " | ".join(f"at {other:.2f}" for other in targets) + " |"]
    lines.append("| --- " * (1 + len(targets)) + "|")
    runs = {method: [result.points for result in results] for method, results in finished(plan, case).items()}
    for method, curves in runs.items() if BASE in runs else ():
        pairs = [[ratio(curves, runs[BASE], other, cost) for cost in ("tokens", "seconds")] for other in targets]
        cells = [" / ".join(shown_ratio(found).partition(" [")[0] for found in pair) for pair in pairs]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def section_results(plan: Plan, target: float) -> SectionResults:
    """The results of a section for the page."""
    cases = plan.section.cases
    edges = [method for method in plan.methods if (tuned := plan.tuned(method)) is not None and tuned.at_edge]
    commits = {result.commit for case in cases for results in finished(plan, case).values() for result in results}
    return SectionResults(
        section=plan.section,
        target=target,
        methods=plan.methods,
        seeds=plan.seeds,
        tables={case: table(plan, case, target) for case in cases},
        sensitivities={case: sensitivity(plan, case, target) for case in cases},
        at_edge=edges,
        shared={method: plan.method_of(method) for method in plan.methods if plan.method_of(method) != method},
        commits=sorted(commits),
        missing=len(plan.missing()),
    )


def curves_of(plan: Plan) -> dict[str, Curves]:
    """The points of the final runs by case and method."""
    return {
        case: {method: [result.points for result in results] for method, results in finished(plan, case).items()}
        for case in plan.section.cases
    }


def write_report(plans: Sequence[Plan], folder: Path) -> str:
    """Write the report of all finished runs into `folder`; returns one line for each section and one for the page.

    A section is left out as long as it has no final runs, or no target.
    """
    begun = [plan for plan in plans if plan.target is not None and any(finished(plan, c) for c in plan.section.cases)]
    lines = []
    for plan in plans:
        missing = len(plan.missing())
        state = "complete" if not missing else f"missing runs: {missing} or more"
        lines.append(f"{plan.section.name}: {state if plan in begun else 'no final runs yet'}")
    if begun:
        lines.append(f"report: {_write(begun, folder)}")
    return "\n".join(lines)


def publish(plans: Sequence[Plan], docs: Path) -> str:
    """Write the report of the complete plans into `docs`; returns a line about it, "" if none is complete."""
    complete = [plan for plan in plans if plan.target is not None and plan.complete]
    return f"complete sections: {_write(complete, docs)}" if complete else ""


def _write(plans: Sequence[Plan], folder: Path) -> Path:
    """Write results/SECTION.json, algorithm-SECTION.png and algorithm.md into `folder`; returns the page.

    Sections of an existing page that are not among the plans stay, so that they need no files of runs.
    """
    (folder / "results").mkdir(parents=True, exist_ok=True)
    parts = []
    for plan in plans:
        target, name = plan.target, plan.section.name
        if target is not None:
            (folder / "results" / f"{name}.json").write_text(json.dumps(as_json(plan)) + "\n")
            (folder / f"algorithm-{name}.png").write_bytes(draw(plan.section, curves_of(plan), target))
            parts.append(section_results(plan, target))
    file = folder / "algorithm.md"
    file.write_text(page(parts, file.read_text() if file.is_file() else ""))
    return file
