"""Plans of `make bench-adaptive`, and results of runs that were never made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import adaptive_costs as costs
import adaptive_runs as runs
from adaptive_sections import SKILLS


def result(tokens: int, *accuracies: float) -> Any:
    """A run with the same accuracy in its last three evaluations, whose target is crossed after about `tokens`."""
    levels = accuracies or (0.0, 0.9, 0.9, 0.9)
    points = tuple(
        costs.Point(4 * place, place * tokens // 2, place * tokens // 4, float(place), accuracy, {"swap": accuracy})
        for place, accuracy in enumerate(levels)
    )
    return runs.Result(points, wall_seconds=60.0, commit="abc")


def do_all(plan: Any, outcome: Callable[[Any], Any]) -> list[Any]:
    """Write a result for each missing run of a plan, also for those that follow from results; returns the runs."""
    done = []
    while missing := plan.missing():
        for run in missing:
            plan.store.write(run, outcome(run))
        done += missing
    return done


def best_at(rate: str) -> Callable[[Any], Any]:
    """Runs that reach the target soonest at this learning rate."""
    return lambda run: result(1000 if run.rate == rate else 4000)


def plan_of(folder: Path, section: Any = SKILLS, names: tuple[str, ...] = ("grpo", "dapo"), seeds: int = 2) -> Any:
    return runs.Plan(section, runs.Store(folder), names, seeds)
