"""Compares GRPO, DAPO, rules of other authors and adaptive variants at equal cost: make bench-adaptive.

For each method of a section (skills, real, uniform) the learning rate is tuned on seeds of its own, and final runs have
others. Rows that change one thing about adagrpo have its rate. Recorded are the held-out accuracy and its costs:
generated tokens, tokens trained on, and seconds. All runs of one base model share the rollout actors, and each starts
from a new adapter. A finished run is a file and is not repeated: Ctrl-C loses at most the run under way, and the same
command continues.

    --section skills --methods grpo adagrpo --seeds 2   a part of it
    --estimate                                          missing runs and expected hours, without starting one
    --rates                                             success rates of the base model of a section
    --report                                            the report of the finished runs

The report is written to the folder of the runs, and to docs/ for each section all of whose runs are done.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adaptive_costs import Point, smoothed
from adaptive_methods import METHODS, methods_of
from adaptive_rates import print_rates
from adaptive_report import publish, write_report
from adaptive_runs import Plan, Result, Store
from adaptive_sections import SECTIONS, TUNING_SEEDS, Run, Section, base_run, configure, prepare
from skills import same_text

from adagrpo_ray.cluster.connecting import connect
from adagrpo_ray.errors import DivergedError
from adagrpo_ray.extensions.given import NOTHING, Given, give
from adagrpo_ray.runs import EvaluationRecord, Observer, StepRecord
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.actors import Actors, actors, begin
from adagrpo_ray.training.preflight import check
from adagrpo_ray.training.start import train_on


class Ended(Exception):  # noqa: N818 - not an error, but the end of a run before its last step
    """An evaluation reached the accuracy at which the run ends, or the run has generated its tokens."""


class Curve(Observer):
    """Records the points of a run, and ends it at an accuracy or after so many generated tokens."""

    def __init__(self, until: float | None, tokens: int | None) -> None:
        """End the run at the accuracy `until` or after so many `tokens`; None: at neither."""
        self.points: list[Point] = []
        self._until, self._most = until, tokens
        self._tokens, self._trained, self._seconds = 0, 0, 0.0

    def step(self, record: StepRecord) -> None:
        self._tokens += record.generated_tokens
        self._trained += record.trained_tokens * (record.passes or 0)
        self._seconds += record.step_time

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        costs = (self._tokens, self._trained, round(self._seconds, 3))
        self.points.append(Point(record.step, *costs, record.accuracy, dict(record.accuracy_by_difficulty)))
        reached = self._until is not None and smoothed(self.points)[-1] >= self._until
        if reached or (self._most is not None and self._tokens >= self._most):
            raise Ended


class Bench:
    """Does runs of one base model on the same actors."""

    def __init__(self, running: Actors, store: Store, given: Given) -> None:
        self._running, self._store, self._given = running, store, given

    def do(self, run: Run) -> Result:
        """Do a run and write its result. A run that diverges has the points before it, and the error."""
        began, error, folder = time.monotonic(), "", self._store.folder / "last"
        config = configure(run, self._store.folder)
        begin(config, self._running, check(config, self._given), Stop())
        section = SECTIONS[run.section]
        until = section.enough if run.until is None else run.until
        curve = Curve(until, section.tokens)
        try:
            with suppress(Ended):
                train_on(self._running, config, folder, curve, None, Stop(), str(folder), str)
        except DivergedError as found:
            error = str(found)
        result = Result(tuple(curve.points), round(time.monotonic() - began, 3), commit(), error)
        self._store.write(run, result)
        return result


def given_to(section: str) -> Given:
    """The functions that the settings of a section name."""
    return give({("rewards.functions", same_text.__name__): same_text}) if section == "skills" else NOTHING


@contextmanager
def bench(section: Section, case: str, store: Store) -> Iterator[Bench]:
    """The actors of a base model, for the block."""
    prepare(section.name, store.folder)
    config, given = configure(base_run(section, case), store.folder), given_to(section.name)
    inputs = check(config, given)
    with connect(config, inputs.joined) as placement, actors(config, placement, inputs, Stop()) as running:
        yield Bench(running, store, given)


def commit() -> str:
    """The commit of the checkout, with a plus sign if files differ from it; "unknown" without git."""
    git = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def do_all(plan: Plan) -> None:
    """Do the missing runs of a plan, base model after base model."""
    while runs := plan.missing():
        case = runs[0].case
        with bench(plan.section, case, plan.store) as ready:
            while here := [run for run in plan.missing() if run.case == case]:
                result = ready.do(here[0])
                print(progress(here[0], result, len(here) - 1), flush=True)


def progress(run: Run, result: Result, left: int) -> str:
    """One line about a finished run; `left`: runs of this base model that are known to be missing."""
    last = result.points[-1]
    kind = "tuning" if run.seed in TUNING_SEEDS else "run"
    return (
        f"{run.section} {run.case} {run.method} {run.rate} seed {run.seed} ({kind}): accuracy {last.accuracy:.3f}, "
        f"{last.step} steps, {last.tokens:,} tokens, {last.seconds:.0f} s of training, {result.wall_seconds:.0f} s in "
        f"all{f'; {result.error}' if result.error else ''}; {left} more"
    )


def estimate(plan: Plan) -> str:
    """Missing runs and expected hours of a plan, from the times of its finished runs."""
    kinds: list[str] = []
    times: dict[bool, list[float]] = {True: [], False: []}  # whether of tuning runs -> seconds
    for method in plan.methods:
        own = METHODS[method].rate_of is None
        tuning = [plan.store.find(run) for run in plan.tuning(method, plan.grid(method))] if own else []
        final = plan.final(method) or {}
        times[True] += [result.wall_seconds for result in tuning if result is not None]
        times[False] += [result.wall_seconds for results in final.values() for result in results if result is not None]
    known = [seconds for found in times.values() for seconds in found]
    hours = 0.0
    for is_tuning, name, count in zip((True, False), ("tuning", "final"), plan.outstanding(), strict=True):
        found = times[is_tuning] or known
        hours += count * sum(found) / len(found) / 3600 if found else 0.0
        kinds.append(f"{count} {name} runs")
    expected = f"about {hours:.1f} hours" if known else "hours unknown, since no run is done"
    return f"{plan.section.name}: missing {' and '.join(kinds)}, {expected}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all; grpo is always among them")
    parser.add_argument("--seeds", type=int, help="final runs of each method; default: 5, and 3 of the section real")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-adaptive"), help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the results of complete sections")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--estimate", action="store_true", help="print the missing runs and the expected hours")
    action.add_argument("--rates", action="store_true", help="print success rates of the base models")
    action.add_argument("--report", action="store_true", help="write the report of the finished runs")
    return parser.parse_args()


def plans(options: argparse.Namespace, store: Store) -> list[Plan]:
    """The plans of the sections and methods that were asked for."""
    found = []
    for name in options.section:
        section = SECTIONS[name]
        methods = [method for method in methods_of(name) if options.methods is None or method in options.methods]
        found.append(Plan(section, store, methods, options.seeds or section.seeds))
    return found


def main() -> None:
    options = parse()
    if options.rates:
        for name in options.section:
            print_rates(SECTIONS[name], options.folder)
        return
    store = Store(options.folder)
    chosen = plans(options, store)
    if options.estimate:
        print("\n".join(map(estimate, chosen)))
        return
    interrupted = False
    try:
        for plan in [] if options.report else chosen:
            do_all(plan)
    except KeyboardInterrupt:
        interrupted = True
    print(write_report(chosen, options.folder / "report"))
    whole = [Plan(section, store, methods_of(name), section.seeds) for name, section in SECTIONS.items()]
    print(publish(whole, options.docs))
    if interrupted:
        print(f"interrupted: finished runs are in {options.folder}, and the same command continues")
        raise SystemExit(130)


if __name__ == "__main__":
    main()
