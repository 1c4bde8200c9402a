"""make bench: this system against TRL's GRPOTrainer and against the limits of its halves, in one run on one machine.

The work is that of `make train`: the tiny base model, its additions, 16 groups of 4 completions a step, plain GRPO
with one update a batch. Each part is a process of its own, whose memory is measured with that of its children.

1. TRL's GRPOTrainer in every configuration that may run here (trl_variants.py), the fastest one also with weights in
   bfloat16; the halves of this system alone and side by side (throughput.py); this system in turn
   (`max_staleness` 0) and ahead (1 and 2), with both types of weights.
2. 1 and 2 rollout actors, 1 and 2 learner ranks.
3. The simulation of up to 256 rollout actors (simulation.py).

Prints the figures and writes runs/bench/bench.json. ARGS="key=value ..." changes settings on both sides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from trl_variants import VARIANTS

HERE = Path(__file__).parent
OUT = Path("runs/bench/bench.json")
STEPS = 40
WORK = ("data.held_out_prompts=0", "algorithm.name=grpo")
FAST = ("rollout.eager=false",)
TYPES, AHEAD = ("float32", "bfloat16"), (0, 1, 2)


def part(script: str, *arguments: str, before: Sequence[str] = (), threads: int | None = None) -> dict[str, Any]:
    """What `script` writes to the file that it is told after the arguments in `before`; with its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        command = [sys.executable, str(HERE / script), *before, str(out), *arguments]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
        with open(Path(folder, "log"), "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
            memory = Peak(process.pid)
            process.wait()
            log.seek(0)
            tail = log.read().strip().splitlines()[-1:]
        if process.returncode or not out.is_file():
            return {"error": (tail or [f"exit code {process.returncode}"])[0]}
        figures: dict[str, Any] = json.loads(out.read_text())
        return {"peak_memory_mib": memory.mib(), **{k: v for k, v in figures.items() if k != "peak_memory_mib"}}


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


def trl(overrides: Sequence[str]) -> dict[str, Any]:
    """Every variant of TRL's, and the fastest one in the other type of weights too."""

    def run(variant: str, *more: str) -> dict[str, Any]:
        figures = part("trl_baseline.py", "--variant", variant, f"run.steps={STEPS}", *overrides, *more)
        tell(" ".join([variant, *more]), figures)
        return figures

    variants = {name: run(name) for name in VARIANTS}
    fastest = max(variants, key=lambda name: variants[name].get("tokens_per_s", 0.0))
    variants[f"{fastest}, bfloat16"] = run(fastest, "model.dtype=bfloat16")
    return variants


def ours(overrides: Sequence[str], name: str, *more: str) -> dict[str, Any]:
    """A run of this system."""
    figures = part("throughput.py", *WORK, f"run.steps={STEPS}", *FAST, *overrides, *more, before=["program"])
    tell(name, figures)
    return figures


def tell(name: str, figures: dict[str, Any]) -> None:
    """One line of a run: what it reached, or why it could not."""
    told = figures.get("error") or (
        f"{figures['tokens_per_s']:8,.0f} tokens/s  {figures['seconds_per_step']:.3f} s a step  "
        f"{figures['peak_memory_mib']:6,.0f} MiB"
    )
    print(f"  {name:44} {told}", flush=True)


def fastest_of(runs: dict[str, dict[str, Any]]) -> str:
    return max(runs, key=lambda name: runs[name].get("tokens_per_s", 0.0))


def main() -> None:
    overrides = sys.argv[1:]
    print("TRL's GRPOTrainer")
    baselines = trl(overrides)
    print("this system")
    programs = {
        f"max_staleness {n}, {dtype}": ours(
            overrides, f"max_staleness {n}, {dtype}", f"algorithm.max_staleness={n}", f"model.dtype={dtype}"
        )
        for dtype in TYPES
        for n in AHEAD
    }
    best, base = fastest_of(programs), fastest_of(baselines)
    ahead = [f"algorithm.max_staleness={best.split()[1].rstrip(',')}", f"model.dtype={best.split()[-1]}"]
    print("limits, with the settings of the fastest one")
    limits = part("throughput.py", *WORK, *FAST, *overrides, *ahead, before=["limits"], threads=1)
    for name, value in limits.items():
        print(f"  {name:44} {value:8,.0f}")
    print("rollout actors and learner ranks, with the same settings")
    scaled = {
        f"actors {actors}, ranks {ranks}": ours(
            overrides,
            f"actors {actors}, ranks {ranks}",
            f"rollout.actors={actors}",
            f"learner.ranks={ranks}",
            *ahead,
        )
        for actors, ranks in ((1, 1), (2, 1), (1, 2), (2, 2))
    }
    speed, slower = programs[best]["tokens_per_s"], baselines[base]["tokens_per_s"]
    both = min(limits["rollout_beside_tokens_per_s"], limits["learner_beside_tokens_per_s"])
    alone = min(limits["rollout_alone_tokens_per_s"], limits["learner_alone_tokens_per_s"])
    figures = {
        "ours_tokens_per_s": speed,
        "trl_tokens_per_s": slower,
        "ratio_to_trl": speed / slower,
        "pipeline_share": speed / both,
        "pipeline_share_of_halves_alone": speed / alone,
        "ours": best,
        "trl": base,
    }
    print()
    for name, value in figures.items():
        print(f"{name:34} {value if isinstance(value, str) else format(value, ',.2f')}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    everything = {**figures, "programs": programs, "baselines": baselines, "limits": limits, "scaled": scaled}
    OUT.write_text(json.dumps(everything, indent=2) + "\n")
    print(f"\nup to 256 rollout actors, simulated (also in {OUT.with_name('simulation.json')})", flush=True)
    subprocess.run([sys.executable, str(HERE / "simulation.py"), *WORK, *overrides], check=True)


if __name__ == "__main__":
    main()
