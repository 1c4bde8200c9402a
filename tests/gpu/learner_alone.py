"""Measures the learner alone on a CUDA device in less than 8 minutes: python -m tests.gpu.learner_alone

It needs torch, Transformers, PEFT and DeepSpeed, but neither Ray nor vLLM. The model has random weights and the shape
of Qwen3-1.7B. For each packing, type of weights and use of gradient checkpointing it measures tokens a second, share
of the speed of the device, and peak of memory against the estimate. Numbers of a model of two layers are compared
with those of the CPU in float32. Prints one screen, writes a JSON file, and ends with 1 if a check fails.

`--device cpu --size tiny` tries the program itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adagrpo_ray.config.learner import Packing
from tests.gpu.learner_case import SIZES, Case, Found, matmul_speed, measure, write_model
from tests.support.places import ROOT

PACKINGS: tuple[Packing, ...] = ("padded", "packed", "shared")
CASES = (
    *(Case(packing, "bfloat16", True) for packing in PACKINGS),
    *(Case(packing, "bfloat16", True, group=False) for packing in PACKINGS[:2]),
    *(Case(packing, "bfloat16", False) for packing in PACKINGS),
    *(Case(packing, "float32", True) for packing in PACKINGS),
)
COMPARED = tuple(Case(packing, dtype, False) for dtype in ("float32", "bfloat16") for packing in PACKINGS)
REFERENCE = Case("padded", "float32", False)
COMPARED_LAYERS, COMPARED_TOKENS = 2, 1024
MEMORY = 0.05
"""The largest share by which the peak of memory may differ from the estimate."""
CLOSE = {"float32": 1e-3, "bfloat16": 0.1}
"""The largest mean difference of log-probabilities, and share of the loss and of the norm of the gradient."""
LIMIT_S = 420.0
"""Seconds after which no further case begins."""
GIB = 2**30


def run_cases(folder: Path, tokens: int, limit_s: float) -> Iterator[dict[str, Any]]:
    """Measure the cases one after the other; a case that does not fit has a `skipped` with the reason."""
    began = time.perf_counter()
    for case in CASES:
        row: dict[str, Any] = {"case": str(case), "dtype": case.dtype}
        if time.perf_counter() - began > limit_s:
            row["skipped"] = "no time left"
        else:
            try:
                found = asdict(measure(case, folder, tokens))
                row |= {name: value for name, value in found.items() if name != "logprobs"}
            except torch.OutOfMemoryError:
                row["skipped"] = "out of memory"
        print(f"  {case} done after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        yield row


def difference(found: Found, expected: Found) -> dict[str, float]:
    """The mean difference of log-probabilities, and the shares by which loss and norm of the gradient differ."""
    return {
        "logprobs": float(np.abs(np.subtract(found.logprobs, expected.logprobs)).mean()),
        "loss": abs(found.loss - expected.loss) / max(abs(expected.loss), 1e-2),
        "grad_norm": abs(found.grad_norm / expected.grad_norm - 1),
    }


def failures(cases: Sequence[dict[str, Any]], compared: Sequence[dict[str, Any]]) -> list[str]:
    """The checks that fail, in words."""
    found = []
    for row in cases:
        if row.get("peak") is not None and abs(row["peak"] / row["estimated"] - 1) > MEMORY:
            found.append(f"{row['case']}: {row['peak'] / GIB:.2f} GiB, not {row['estimated'] / GIB:.2f} as estimated")
    for row in compared:
        found += [
            f"{row['case']}: {name} differs from the CPU's by {row[name]:.2g}"
            for name in ("logprobs", "loss", "grad_norm")
            if not row[name] <= CLOSE[row["dtype"]]
        ]
    return found


def screen(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{result['device']}, torch {result['torch']}, {result['size']}, {result['tokens']} tokens"]
    speeds = ", ".join(f"{dtype} {speed / 1e12:.0f}" for dtype, speed in result["matmul"].items())
    lines += [f"matrix products, TFLOP/s: {speeds}" if speeds else "", ""]
    lines.append(f"{'case':36}{'s':>8}{'tokens/s':>10}{'use':>7}{'GiB':>8}{'estimate':>10}")
    for row in result["cases"]:
        if "skipped" in row:
            lines.append(f"{row['case']:36}{row['skipped']}")
            continue
        speed = result["matmul"].get(row["dtype"])
        used = f"{row['flops'] / row['seconds'] / speed:7.0%}" if speed else f"{'-':>7}"
        peak = f"{row['peak'] / GIB:8.2f}" if row["peak"] is not None else f"{'-':>8}"
        speed_cells = f"{row['seconds']:8.2f}{row['tokens'] / row['seconds']:10.0f}"
        lines.append(f"{row['case']:36}{speed_cells}{used}{peak}{row['estimated'] / GIB:10.2f}")
    lines += ["", f"{f'against the CPU, {COMPARED_LAYERS} layers':36}{'logprobs':>10}{'loss':>10}{'grad_norm':>11}"]
    for row in result["compared"]:
        lines.append(f"{row['case']:36}{row['logprobs']:10.2g}{row['loss']:10.2g}{row['grad_norm']:11.2g}")
    lines += ["", *(f"FAILED {failure}" for failure in result["failed"])]
    return "\n".join([*lines, f"{len(result['failed'])} checks failed; {result['seconds']:.0f} s"])


def reference(folder: Path, tokens: int) -> Found:
    """The numbers of the CPU, from a process of its own, since a process with CUDA uses CUDA."""
    code = (
        "import json, sys; from dataclasses import asdict; from pathlib import Path; "
        "from tests.gpu.learner_alone import REFERENCE; from tests.gpu.learner_case import measure; "
        "print(json.dumps(asdict(measure(REFERENCE, Path(sys.argv[1]), int(sys.argv[2]), 0))))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tokens)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise RuntimeError(f"the run on the CPU failed:\n{ended.stderr}")
    return Found(**json.loads(ended.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="qwen3-1.7b", help="shape of the model")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a micro-batch")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds after which no further case begins")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/learner.json"))
    given = parser.parse_args(arguments)
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before the first use of CUDA
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --size tiny tries the program without one")
    began = time.perf_counter()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "CPU",
        "torch": torch.__version__,
        "size": given.size,
        "tokens": given.tokens,
        "matmul": {d: matmul_speed(d) for d in ("bfloat16", "float32")} if given.device == "cuda" else {},
    }
    with tempfile.TemporaryDirectory() as name:
        whole, part = Path(name, "whole"), Path(name, "part")
        write_model(part, given.size, COMPARED_LAYERS)
        tokens = min(given.tokens, COMPARED_TOKENS)
        expected = reference(part, tokens)
        result["compared"] = [
            {"case": str(case), "dtype": case.dtype, **difference(measure(case, part, tokens, 0), expected)}
            for case in COMPARED
        ]
        write_model(whole, given.size, None)
        result["cases"] = list(run_cases(whole, given.tokens, given.limit_s - (time.perf_counter() - began)))
    result["failed"] = failures(result["cases"], result["compared"])
    result["seconds"] = time.perf_counter() - began
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(screen(result))
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
