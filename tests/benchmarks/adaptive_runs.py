"""Finished runs as files, and the runs that are still missing. Nothing here starts a run.

The file of a run is named by section, case, method, learning rate, seed and a hash of its resolved settings, so that
runs of another definition are never mixed in. Which runs are missing depends on the finished ones: the best learning
rate decides the final runs, and it may lie at the edge of the grid, which then grows.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from adaptive_costs import Point, cost_or_bound, cost_to, smoothed
from adaptive_methods import BASE, METHODS
from adaptive_sections import SECTIONS, Run, Section, configure

from adagrpo_ray.storage.places import leave

MOST_EXTRA_RATES = 2
"""Learning rates that the tuning of a method adds to the grid at most."""

_NOT_OF_THE_RUN = {"tracking": True, "checkpoint": True, "run": {"name", "output_dir", "report", "ray_address"}}
"""Settings without an influence on the results."""


@cache
def settings_hash(run: Run, folder: Path) -> str:
    """A hash of the settings of a run, and of the accuracy and the tokens that end it, as 10 hex digits.

    Leaves out settings that are null, so that a new one that is off by default does not change the hash. If null stands
    for the default of the method, the hash has that default. Without an allocation its settings do not count. Of the
    paths of model and data only the last part counts.
    """
    config = configure(run, folder)
    settings = config.model_dump(mode="json", exclude=_NOT_OF_THE_RUN)
    if not config.algorithm.allocates:
        del settings["algorithm"]["allocation"]
    for setting, value in config.resolved.items():
        part, name = setting.split(".")
        settings[part][name] = value
    for key in (("model", "path"), ("data", "source")):
        settings[key[0]][key[1]] = Path(settings[key[0]][key[1]]).name
    section = SECTIONS[run.section]
    parts = {
        "settings": _without_null(settings),
        "until": run.until,
        "tokens": section.tokens,
        "enough": section.enough,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Result:
    """The points of a finished run, and its time with start-up and evaluations.

    `error` is the message of the error that ended it, such as that of a run that diverged; "" if none did.
    """

    points: tuple[Point, ...]
    wall_seconds: float
    commit: str
    error: str = ""


class Store:
    """The results in `folder`/runs, one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, Result] = {}

    def file(self, run: Run) -> Path:
        """The file of a run."""
        name = f"{run.section}-{run.case}-{run.method}-{run.rate}-{run.seed}-{settings_hash(run, self.folder)}.json"
        return self.folder / "runs" / name

    def find(self, run: Run) -> Result | None:
        """The result of a run; None if it has none."""
        file = self.file(run)
        if file not in self._known:
            if not file.is_file():
                return None
            found = json.loads(file.read_text())
            points = tuple(Point(**point) for point in found["points"])
            self._known[file] = Result(points, found["wall_seconds"], found["commit"], found["error"])
        return self._known[file]

    def write(self, run: Run, result: Result) -> None:
        """Write the result with the settings of the run, in one piece."""
        file = self.file(run)
        settings = configure(run, self.folder).model_dump(mode="json")
        text = json.dumps({"run": asdict(run), **asdict(result), "settings": settings}, indent=1) + "\n"
        leave(str(file.parent), file.name, text)


def neighbour(rate: str, up: bool) -> str:
    """The next learning rate in steps of half a decade: 3e-4 lies between 1e-4 and 1e-3."""
    mantissa, exponent = rate.split("e")
    if (mantissa, up) == ("1", True) or (mantissa, up) == ("3", False):
        return f"{'3' if up else '1'}e{exponent}"
    return f"{'1' if up else '3'}e{int(exponent) + (1 if up else -1)}"


@dataclass(frozen=True)
class Tuned:
    """The chosen learning rate.

    - `tried`: all that were tried, the lowest first.
    - `highest`: the highest that may be tried; None: there is no such bound.
    """

    rate: str
    tried: tuple[str, ...]
    highest: str | None = None

    @property
    def at_edge(self) -> bool:
        """Whether a rate beyond those that were tried may be better; not above the highest one that may be tried.

        A single rate was not tuned, and has no edge.
        """
        last = self.rate == self.tried[-1] and self.rate != self.highest
        return len(self.tried) > 1 and (self.rate == self.tried[0] or last)


class Plan:
    """The runs of some methods in a section, with `seeds` final runs each."""

    def __init__(self, section: Section, store: Store, methods: Sequence[str], seeds: int) -> None:
        self.section, self.store, self.seeds = section, store, seeds
        # All others are compared with the base, so that it cannot be left out.
        self.methods = (BASE, *(method for method in methods if method != BASE))

    def method_of(self, method: str) -> str:
        """The first method with the same settings, whose runs it shares. A row may be equal to the defaults."""
        probe = Run(self.section.name, self.section.tuned_on, method, self.section.rates[0], seed=0)
        wanted = settings_hash(probe, self.store.folder)
        same = (m for m in self.methods if settings_hash(replace(probe, method=m), self.store.folder) == wanted)
        return next(same, method)

    @property
    def target(self) -> float | None:
        """The target of the section; if it is set by the base, None as long as runs of the base are missing.

        It is the median over the seeds of the smoothed accuracy at the end of the run.
        """
        if self.section.target is not None:
            return self.section.target
        tuned = self.tuned(BASE)
        runs = [] if tuned is None else [self.store.find(run) for run in self._final(BASE, tuned.rate)]
        ends = [smoothed(result.points)[-1] for result in runs if result is not None]
        return statistics.median(ends) if ends and len(ends) == len(runs) else None

    def tuning(self, method: str, rates: Sequence[str]) -> list[Run]:
        """The runs at these rates that tune a method; they are runs of another one whose learning rate it has."""
        tuned = self.method_of(METHODS[method].rate_of or method)
        first = self.section.target is None and method == BASE  # its end is the target
        until = None if first else self.target
        return [
            Run(self.section.name, self.section.tuned_on, tuned, rate, seed, until)
            for rate in rates
            for seed in self.section.tuning_seeds
        ]

    def grid(self, method: str) -> tuple[str, ...]:
        """The learning rates to try, the lowest first: those of the section, and more if the best lies at the edge.

        None is above the highest one of the section. The grid of a section with a single rate does not grow.
        """
        rates = self.section.rates
        for _ in range(MOST_EXTRA_RATES if len(rates) > 1 else 0):
            best = self._best(method, rates)
            if best == rates[0]:
                rates = (neighbour(rates[0], up=False), *rates)
            elif best == rates[-1] != self.section.highest:
                rates = (*rates, neighbour(rates[-1], up=True))
            else:
                break
        return rates

    def tuned(self, method: str) -> Tuned | None:
        """The learning rate of the final runs; None as long as tuning runs are missing."""
        rates = self.grid(method)
        best = self._best(method, rates)
        return None if best is None else Tuned(best, rates, self.section.highest)

    def final(self, method: str) -> dict[str, list[Result | None]] | None:
        """The final runs by case, one for each seed, None if it is missing; None if the method is not tuned yet."""
        tuned = self.tuned(method)
        if tuned is None:
            return None
        runs = self._final(method, tuned.rate)
        return {case: [self.store.find(run) for run in runs if run.case == case] for case in self.section.cases}

    def missing(self) -> list[Run]:
        """The runs that can be done now, in their order; more may follow from their results."""
        if self.section.target is None and self.target is None:
            return self._missing(BASE)
        runs = [run for method in self.methods for run in self._missing(method)]
        return list(dict.fromkeys(runs))

    def outstanding(self) -> tuple[int, int]:
        """Expected numbers of tuning and of final runs that are missing, without rates that the grids may add."""
        tuning: set[Run] = set()
        final = 0
        for method in self.methods:
            if self.method_of(method) != method:
                continue
            tuning |= {run for run in self.tuning(method, self.grid(method)) if self.store.find(run) is None}
            results = self.final(method)
            all_of_them = len(self.section.cases) * self.seeds
            final += all_of_them if results is None else sum(r is None for rs in results.values() for r in rs)
        return len(tuning), final

    @property
    def complete(self) -> bool:
        """Whether all runs of these methods are there."""
        return not self.missing()

    def _missing(self, method: str) -> list[Run]:
        runs = self.tuning(method, self.grid(method))
        tuned = self.tuned(method)
        if tuned is not None:
            runs = self._final(method, tuned.rate)
        return [run for run in runs if self.store.find(run) is None]

    def _final(self, method: str, rate: str) -> list[Run]:
        until = self.target if self.section.target is None and method != BASE else None
        return [
            Run(self.section.name, case, self.method_of(method), rate, seed, until)
            for case in self.section.cases
            for seed in range(self.seeds)
        ]

    def _best(self, method: str, rates: Sequence[str]) -> str | None:
        """The best of these rates; None if runs are missing.

        Fewer runs that miss the target are better, then fewer generated tokens until it, on average over the tuning
        seeds, then a higher accuracy at the end. Without a target only the last one counts.
        A single rate needs no runs.
        """
        if len(rates) == 1:
            return rates[0]
        found = {rate: [self.store.find(run) for run in self.tuning(method, [rate])] for rate in rates}
        curves = {rate: [result.points for result in results if result is not None] for rate, results in found.items()}
        if any(len(curves[rate]) < len(results) for rate, results in found.items()):
            return None
        until = self.tuning(method, rates)[0].until

        def badness(rate: str) -> tuple[int, float, float]:
            points = curves[rate]
            accuracy = statistics.mean(smoothed(p)[-1] for p in points)
            if until is None:
                return 0, 0.0, -accuracy
            misses = sum(cost_to(p, until, "tokens") is None for p in points)
            return misses, statistics.mean(cost_or_bound(p, until, "tokens") for p in points), -accuracy

        return min(rates, key=badness)
