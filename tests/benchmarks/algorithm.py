"""GRPO, DAPO and adaptive variants at equal cost on the embedded task: make bench-algorithm.

Runs launch/train.py for every success rate of the base model, method and seed, and reads from the run folders
after how many generated tokens and seconds each reached the target accuracy. A run that is there already is not
done again, so that it may be interrupted. Learning rates are tuned for each method on seeds of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIGITS = (3, 4)
RUNGS = "[{from_step: 1, rungs: [{temperature: 1.0}, {temperature: 1.1, top_p: 0.99}]}]"
METHODS = {
    "grpo": ["algorithm.name=grpo"],
    "dapo": ["algorithm.name=dapo", "algorithm.loss.kind=dapo", "algorithm.loss.epsilon_high=0.28"],
    "adagrpo": [f"algorithm.triggers={RUNGS}"],
    "adagrpo-immediate": [f"algorithm.triggers={RUNGS}", "algorithm.resample=immediate"],
    "adagrpo-balanced": [f"algorithm.triggers={RUNGS}", "algorithm.train_on=balanced"],
    "adagrpo-drop": [f"algorithm.triggers={RUNGS}", "algorithm.on_exhausted=drop"],
}
TARGET = 0.5
TUNING_SEEDS = (100, 101)


@dataclass(frozen=True)
class Outcome:
    """What one run needed to reach TARGET (None: never did) and where it ended."""

    tokens: float | None
    seconds: float | None
    final: float


def run(folder: Path, rate: str, method: str, seed: int, learning_rate: str, steps: int) -> Outcome:
    """The outcome of one run, done now where `folder` does not hold it yet."""
    name = f"{method}-p{rate}-lr{learning_rate}-s{seed}"
    if not (folder / name / "summary.json").exists():
        keep = ", ".join(f"{digits}: {rate}" for digits in DIGITS)
        command = [
            sys.executable,
            "launch/train.py",
            "--config",
            "launch/configs/tiny-cpu.yaml",
            f"run.folder={folder}",
            f"run.name={name}",
            f"run.seed={seed}",
            f"run.steps={steps}",
            f"arithmetic.keep_carry={{{keep}}}",
            f"learner.learning_rate={learning_rate}",
            "algorithm.prompts_per_step=8",
            "algorithm.group_size=8",
            "evaluation.every=2",
            "evaluation.samples=2",
            "data.held_out_prompts=64",
            *METHODS[method],
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read(folder / name)


def read(folder: Path) -> Outcome:
    """Tokens and seconds of training, without start-up and measurements, until TARGET was first measured."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    reached = next((e["step"] for e in measured if e["accuracy"] >= TARGET), None)
    until = [] if reached is None else steps[:reached]
    return Outcome(
        tokens=None if reached is None else sum(s["generated_tokens"] for s in until),
        seconds=None if reached is None else sum(s["seconds"] for s in until),
        final=measured[-1]["accuracy"],
    )


def tune(folder: Path, rate: str, method: str, rates: list[str], steps: int) -> str:
    """The learning rate with the fewest tokens to TARGET on the tuning seeds; one is returned as it is."""

    def cost(learning_rate: str) -> tuple[float, float]:
        outcomes = [run(folder, rate, method, seed, learning_rate, steps) for seed in TUNING_SEEDS]
        tokens = [math.inf if o.tokens is None else o.tokens for o in outcomes]
        return statistics.median(tokens), -statistics.median(o.final for o in outcomes)

    return rates[0] if len(rates) == 1 else min(rates, key=cost)


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A Markdown table of medians, with ratios to GRPO."""
    lines = ["| success rate | method | reached | tokens | ratio | seconds | ratio | final accuracy |"]
    lines.append("| --- " * 8 + "|")

    def median(values: list[float | None]) -> float:
        return statistics.median(math.inf if v is None else v for v in values)

    for setting, methods in results.items():
        base = {key: median(methods["grpo"][key]) for key in ("tokens_to_target", "seconds_to_target")}
        for method, r in methods.items():
            tokens, seconds = median(r["tokens_to_target"]), median(r["seconds_to_target"])
            final = r["final_accuracy"]
            lines.append(
                f"| {setting} | {method} | {sum(t is not None for t in r['tokens_to_target'])}/{len(final)} "
                f"| {tokens:,.0f} | {tokens / base['tokens_to_target']:.2f} "
                f"| {seconds:.1f} | {seconds / base['seconds_to_target']:.2f} "
                f"| {statistics.median(final):.2f} ({min(final):.2f} to {max(final):.2f}) |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["0.01", "0.04", "0.20"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rates", nargs="+", default=["1e-4", "3e-4", "1e-3"])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-algorithm"))
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for setting in options.settings:
        for method in options.methods:
            learning_rate = tune(options.folder, setting, method, options.learning_rates, options.steps)
            outcomes = [
                run(options.folder, setting, method, seed, learning_rate, options.steps)
                for seed in range(options.seeds)
            ]
            results.setdefault(setting, {})[method] = {
                "tokens_to_target": [o.tokens for o in outcomes],
                "seconds_to_target": [o.seconds for o in outcomes],
                "final_accuracy": [o.final for o in outcomes],
                "learning_rate": learning_rate,
            }
            print(setting, method, results[setting][method], flush=True)
    (options.folder / "algorithm.json").write_text(json.dumps(results, indent=2) + "\n")
    if "grpo" in options.methods:
        print(table(results))


if __name__ == "__main__":
    main()
