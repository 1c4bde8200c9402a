"""The program that measures the learner on a GPU, tried on the CPU with a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adagrpo_ray.model.shape import Shape
from tests.gpu.learner_alone import CASES, COMPARED, failures, run_cases
from tests.gpu.learner_case import GROUP, make_samples, update_flops
from tests.support.places import ROOT

WITHOUT_ENGINES = (
    "import runpy, sys; sys.modules['ray'] = sys.modules['vllm'] = None; "
    "runpy.run_module('tests.gpu.learner_alone', run_name='__main__', alter_sys=True)"
)


def test_the_program_runs_on_a_cpu_without_ray_and_vllm(tmp_path: Path) -> None:
    out = tmp_path / "learner.json"
    arguments = ["--device", "cpu", "--size", "tiny", "--tokens", "256", "--out", str(out)]
    command = [sys.executable, "-c", WITHOUT_ENGINES, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(out.read_text())
    assert [row["case"] for row in result["cases"]] == [str(case) for case in CASES]
    assert [row["case"] for row in result["compared"]] == [str(case) for case in COMPARED]
    assert result["failed"] == []
    assert all(row["seconds"] > 0 and row["flops"] > 0 for row in result["cases"])
    assert [row["tokens"] for row in result["cases"]][:4] == [232, 232, 184, 256]
    assert [row["computed"] for row in result["cases"]][:4] == [256, 232, 184, 256]  # padded, packed, shared, one
    lines = ended.stdout[ended.stdout.index("CPU, torch") :].splitlines()  # without warnings of DeepSpeed
    assert len(lines) < 40, "more than one screen"
    assert lines[-1].startswith("0 checks failed")


def test_no_case_begins_after_the_limit(tmp_path: Path) -> None:
    assert {row["skipped"] for row in run_cases(tmp_path, 64, limit_s=-1.0)} == {"no time left"}


@pytest.mark.parametrize(("peak", "failed"), [(1.04, 0), (1.06, 1), (0.94, 1), (None, 0)])
def test_memory_that_is_not_as_estimated_fails(peak: float | None, failed: int) -> None:
    size = None if peak is None else int(peak * 2**30)
    assert len(failures([{"case": "one", "peak": size, "estimated": 2**30}], [])) == failed
    assert failures([{"case": "one", "skipped": "out of memory"}], []) == []


@pytest.mark.parametrize("value", [2e-3, float("nan")])
def test_numbers_that_are_not_those_of_the_cpu_fail(value: float) -> None:
    row = {"case": "one", "dtype": "float32", "logprobs": 1e-4, "loss": value, "grad_norm": 1e-4}
    (failure,) = failures([], [row])
    assert failure.startswith("one: loss differs from the CPU's by")


def test_flops_match_numbers_by_hand() -> None:
    """One layer, heads of 2 x 3: matrices of 4 x (6 + 6 + 6) + 6 x 4 + 2 x (4 x 5) + 5 x 4 numbers."""
    sizes = {"hidden": 4, "layers": 1, "intermediate": 5, "heads": 2, "kv_heads": 2, "head_dim": 3, "vocabulary": 7}
    shape = Shape(**sizes, tied=True, model_type="qwen3")
    samples = make_samples(64, 7, group=True)
    prompt, lengths = 4, [12, 11, 10, 9]
    assert [len(sample.token_ids) for sample in samples] == lengths
    assert {len(sample.prompt_token_ids) for sample in samples} == {prompt}
    linear, adapter, answers = 4 * 18 + 24 + 40 + 20, 10, 42
    for shared, copies in ((False, GROUP), (True, 1)):
        tokens = copies * prompt + answers
        pairs = copies * 16 + (256 - 16) + (225 - 16) + (196 - 16) + (169 - 16)
        expected = 4 * tokens * linear + 6 * tokens * adapter + 4 * answers * 7 * 4 + 6 * pairs * 6
        assert update_flops(shape, samples, adapter, shared=shared) == (tokens, expected)
