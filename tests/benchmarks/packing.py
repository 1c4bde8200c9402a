"""Measures the time of an update for each packing of samples: python tests/benchmarks/packing.py [key=value ...].

The batch is one group of 8 completions, with prompts of 64, 512 and 4,096 tokens and answers of up to 32 and 512, on
SmolLM2 (extra `real`) or any other model.path. Token ids are random, since they do not affect the time. Packed rows are
measured only if a flash kernel may run: without one they need a mask of [S x S]. Writes runs/bench/packing.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo_ray.config import Config
from adagrpo_ray.config.learner import Packing
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.model.kernels import flash_attention
from adagrpo_ray.model.pretrained import resolve_model
from adagrpo_ray.types import TrainSample

PROMPTS, ANSWERS = (64, 512, 4096), (32, 512)
GROUP = 8
ENOUGH_S = 30.0  # seconds after which no further update of a case is measured
SETTINGS = ("learner.micro_batch_tokens=8192", "model.dtype=float32")


def group(prompt: int, answer: int, vocabulary: int) -> list[TrainSample]:
    """Completions of one prompt, with lengths from half of `answer` to `answer`."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocabulary, prompt).astype(np.int32)
    lengths = np.linspace(answer // 2, answer, GROUP).astype(int)
    return [
        TrainSample(
            prompt_token_ids=tokens,
            token_ids=rng.integers(0, vocabulary, length).astype(np.int32),
            behaviour_logprobs=np.full(length, -10.0, np.float32),
            token_weights=np.full(length, 1 / lengths.sum(), np.float32),
            advantage=float(rng.normal()),
        )
        for length in lengths
    ]


def measure(packing: Packing, rounds: int, overrides: list[str]) -> dict[str, float]:
    """Median seconds of an update, by prompt and answer, over at most `rounds` updates after one for warm-up.

    If the first update takes longer than ENOUGH_S, it is the only one.
    """
    config = Config.load("launch/configs/smollm2-cpu.yaml", [*SETTINGS, *overrides, f"learner.packing={packing}"])
    engine = LearnerEngine(resolve_model(config), config, 0, 1, ("127.0.0.1", 0))
    found = {}
    for prompt in PROMPTS:
        for answer in ANSWERS:
            samples = group(prompt, answer, 1000)
            (batch,) = pack_batches(1, samples, 1, config.learner.micro_batch_tokens, packing)
            seconds = list[float]()
            while len(seconds) <= rounds and sum(seconds) < ENOUGH_S:
                began = time.perf_counter()
                engine.train(batch)
                seconds.append(time.perf_counter() - began)
            found[f"{prompt}+{answer}"] = statistics.median(seconds[1:] or seconds)
            print(f"{packing} {prompt}+{answer}: {found[f'{prompt}+{answer}']:.2f} s", flush=True)
    return found


def table(seconds: dict[Any, dict[str, float]]) -> str:
    """Seconds, and the speed relative to padded rows."""
    lines = [f"{'prompt+answer':16}" + "".join(f"{packing:>18}" for packing in seconds)]
    for case, padded in seconds["padded"].items():
        cells = (f"{of[case]:10.2f} ({padded / of[case]:4.2f}x)" for of in seconds.values())
        lines.append(f"{case:16}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="updates of each case (default: 3)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that override those of smollm2-cpu.yaml"
    )
    given = parser.parse_args()
    flash = flash_attention(Config.load("launch/configs/smollm2-cpu.yaml", given.overrides).model)
    packings: tuple[Packing, ...] = ("padded", "shared", *(("packed",) if flash else ()))
    seconds = {packing: measure(packing, given.rounds, given.overrides) for packing in packings}
    out = Path("runs/bench/packing.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"group": GROUP, "seconds": seconds}, indent=2) + "\n")
    print(table(seconds))


if __name__ == "__main__":
    main()
