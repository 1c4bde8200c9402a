"""Compares GRPO, DAPO and adaptive variants at equal cost on the embedded task: make bench-algorithm.

For every success rate of the base model, method and seed it trains for a number of steps, and records the generated
tokens and seconds until the held-out accuracy first reached TARGET. The learning rate of each method is the one that
needed the fewest tokens at one success rate, on other seeds. All runs of one base model share the rollout actors; each
starts from a new adapter. Finished runs are not repeated, so that the benchmark may be interrupted.
algorithm_report.py writes the results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from algorithm_report import write_report

from adagrpo_ray.cluster.connecting import connect
from adagrpo_ray.config import Config
from adagrpo_ray.runs import EvaluationRecord, Observer, StepRecord
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.actors import Actors, actors, begin
from adagrpo_ray.training.preflight import check
from adagrpo_ray.training.start import train_on

METHODS = {
    "grpo": ["algorithm.name=grpo"],
    "dapo": ["algorithm.name=dapo", "algorithm.loss.kind=dapo", "algorithm.loss.epsilon_high=0.28"],
    "adagrpo": [],
    "adagrpo-immediate": ["algorithm.resample=immediate"],
    "adagrpo-uniform": ["algorithm.allocation.enabled=false"],
    "adagrpo-one-update": ["algorithm.num_iterations=1"],
    "grpo-three-updates": ["algorithm.name=grpo", "algorithm.num_iterations=3"],
}
STEPS = {"0.01": 16, "0.04": 12, "0.20": 10}  # success rate of the base model -> steps of a run
DIGITS = (3, 4)
TARGET = 0.85
TUNING_RATE = "0.04"
TUNING_SEEDS = (100, 101)
LEARNING_RATES = ("5e-4", "1e-3", "2e-3")


@dataclass(frozen=True)
class Point:
    """An evaluation: steps, generated tokens and seconds of training before it, and the held-out accuracy."""

    step: int
    tokens: int
    seconds: float
    accuracy: float


class Reached(Exception):  # noqa: N818 - not an error, but the end of a tuning run
    """An evaluation reached the target accuracy."""


class Curve(Observer):
    """Records the points of a run; their seconds do not include start-up and evaluations."""

    def __init__(self, until: float) -> None:
        self.points: list[Point] = []
        self._tokens, self._seconds, self._until = 0, 0.0, until

    def step(self, record: StepRecord) -> None:
        self._tokens += record.generated_tokens
        self._seconds += record.step_time

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        assert record.accuracy is not None, "these runs have held-out prompts"
        self.points.append(Point(record.step, self._tokens, round(self._seconds, 3), record.accuracy))
        if record.accuracy >= self._until:
            raise Reached


def reached(points: list[Point]) -> Point | None:
    """The first evaluation at or above the target; None if there is none."""
    return next((p for p in points if p.accuracy >= TARGET), None)


def configure(rate: str, method: str, seed: int, learning_rate: str) -> Config:
    keep = ", ".join(f"{digits}: {rate}" for digits in DIGITS)
    return Config.load(
        "launch/configs/tiny-cpu.yaml",
        [
            f"run.seed={seed}",
            f"run.steps={STEPS[rate]}",
            f"arithmetic.keep_carry={{{keep}}}",
            f"learner.learning_rate={learning_rate}",
            "learner.cpus=2",  # learner and rollout actor take turns, so that each can use both cores
            "algorithm.prompts_per_step=8",
            "algorithm.group_size=8",
            "evaluation.every=1",
            "evaluation.samples=1",
            "data.eval_prompts=64",
            *METHODS[method],
        ],
    )


class Bench:
    """The runs of one base model, on the same actors."""

    def __init__(self, running: Actors, rate: str, folder: Path) -> None:
        self._running, self._rate, self._folder = running, rate, folder

    def points(self, method: str, seed: int, learning_rate: str, *, tuning: bool = False) -> list[Point]:
        """The curve of one run, which is done now unless its file exists. A tuning run ends at the target."""
        file = self._folder / f"{self._rate}-{method}-{learning_rate}-{seed}.json"
        if not file.exists():
            config = configure(self._rate, method, seed, learning_rate)
            begin(config, self._running, check(config), Stop())
            curve, folder = Curve(TARGET if tuning else math.inf), self._folder / "last"
            with suppress(Reached):
                train_on(self._running, config, folder, curve, None, Stop(), str(folder), str)
            part = file.with_suffix(".part")
            part.write_text(json.dumps([asdict(p) for p in curve.points]))
            os.replace(part, file)
        return [Point(**p) for p in json.loads(file.read_text())]

    def tune(self, method: str) -> str:
        """The learning rate with the fewest tokens to the target, as median over the tuning seeds."""

        def cost(learning_rate: str) -> tuple[float, float]:
            curves = [self.points(method, seed, learning_rate, tuning=True) for seed in TUNING_SEEDS]
            ends = [reached(points) for points in curves]
            tokens = [math.inf if end is None else end.tokens for end in ends]
            return statistics.median(tokens), -statistics.median(points[-1].accuracy for points in curves)

        return min(LEARNING_RATES, key=cost)


@contextmanager
def bench(rate: str, folder: Path) -> Iterator[Bench]:
    config = configure(rate, "grpo", 0, LEARNING_RATES[0])
    inputs = check(config)
    with connect(config, inputs.joined) as placement, actors(config, placement, inputs, Stop()) as running:
        yield Bench(running, rate, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-algorithm"), help="folder of the runs")
    parser.add_argument("--docs", type=Path, help="folder of the results (default: docs; for a part of it, --folder)")
    options = parser.parse_args()
    whole = options.settings == list(STEPS) and options.methods == list(METHODS) and options.seeds >= 5
    docs = options.docs or (Path("docs") if whole else options.folder)
    options.folder.mkdir(parents=True, exist_ok=True)
    curves: dict[str, dict[str, list[list[Point]]]] = {setting: {} for setting in options.settings}
    # The base model of the tuning first, so that no model is loaded twice.
    order = sorted(options.settings, key=lambda setting: setting != TUNING_RATE)
    rates: dict[str, str] = {}
    for setting in order if order[0] == TUNING_RATE else [TUNING_RATE, *order]:
        with bench(setting, options.folder) as runs:
            if setting == TUNING_RATE:
                rates = {method: runs.tune(method) for method in options.methods}
                print("learning rates:", rates, flush=True)
            for method in options.methods if setting in curves else []:
                curves[setting][method] = [runs.points(method, seed, rates[method]) for seed in range(options.seeds)]
                print(setting, method, [reached(points) for points in curves[setting][method]], flush=True)
    write_report(docs, curves, rates, TARGET)


if __name__ == "__main__":
    main()
