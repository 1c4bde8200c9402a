"""The table of several benchmarks, and the settings that their results depend on."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adagrpo_ray.config import Config
from adagrpo_ray.config.benchmarks import BenchmarkSettings
from adagrpo_ray.data.benchmark_prompts import BenchmarkPrompts
from adagrpo_ray.evaluation.comparison import Comparison, compare
from adagrpo_ray.evaluation.overview import JSON, MARKDOWN, report, save
from adagrpo_ray.evaluation.results import CompletionResult, ProblemResult
from adagrpo_ray.evaluation.settings import BENCHMARK, benchmark_settings, for_evaluation
from adagrpo_ray.rewards.benchmark_answers import FUNCTION
from adagrpo_ray.runs.terminal import rich_console
from tests.support.builders import make_prompt


def problems(*marks: str) -> list[ProblemResult]:
    """One problem for each text: "1" is a correct completion, "0" a wrong one that was cut off."""

    def completion(mark: str) -> CompletionResult:
        correct = mark == "1"
        return CompletionResult("text", 3, not correct, 1.0, correct, correct, correct, extracted=mark)

    return [
        ProblemResult("m", "s", str(number), "?", "1", "", "", tuple(map(completion, text)))
        for number, text in enumerate(marks)
    ]


def comparisons(*models: str) -> dict[str, Comparison]:
    """Two benchmarks; on each of them the models are equal, but for the second model, which is better on the first."""

    def compared(first: list[ProblemResult], better: list[ProblemResult]) -> Comparison:
        return compare(
            [(name, name, str(place) * 12, better if place == 1 else first) for place, name in enumerate(models)]
        )

    return {
        "gsm8k": compared(problems("1", "0", "0", "1"), problems("1", "1", "0", "1")),
        "aime24": compared(problems("10", "00"), problems("10", "00")),
    }


def shown(found: dict[str, Comparison], width: int) -> list[str]:
    stream = io.StringIO()
    console = rich_console(stream, live=False, width=width)
    for part in report(found, width):
        console.print(part, soft_wrap=isinstance(part, str))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_overview_has_a_row_for_each_benchmark_and_a_column_for_each_model() -> None:
    lines = shown(comparisons("base", "mine"), 200)
    rows = {re.split(r"\s{2,}", line.strip())[0]: line for line in lines}
    assert lines[0].split() == ["base", "mine"]
    assert re.findall(r"(\S+) \[", rows["gsm8k (avg@1, 4 problems)"]) == ["0.500", "0.750"]
    assert "0.250 [" in rows["aime24 (avg@2, 2 problems)"]
    assert "0.500 [" in rows["pass@2"]
    assert "pass@1" not in rows
    assert "+0.250" in next(line for line in lines if line.strip().startswith("gsm8k: mine - base"))
    assert "1 of 4" in next(line for line in lines if line.strip().startswith("gsm8k: mine - base"))
    assert any(line.strip().startswith("aime24: mine - base") for line in lines)
    assert "bootstrap over problems" in lines[-1]


def test_overview_of_one_model_has_no_differences() -> None:
    lines = shown(comparisons("base"), 60)
    assert not any(" - " in line for line in lines)
    assert max(map(len, lines[:-1])) <= 60


def test_failed_problems_are_counted_in_the_overview() -> None:
    assert not any("problems failed" in line for line in shown(comparisons("base"), 200))
    broken = [replace(problem, error="no score") for problem in problems("0", "0")]
    lines = shown({"gsm8k": compare([("base", "base", "0" * 12, broken)])}, 200)
    assert next(line for line in lines if "problems failed" in line).split()[-1] == "2"


def test_files_of_the_overview_have_all_benchmarks(tmp_path: Path) -> None:
    save(tmp_path, comparisons("base", "a|b"))
    kept = json.loads((tmp_path / JSON).read_text())
    assert list(kept) == ["gsm8k", "aime24"]
    assert kept["gsm8k"]["models"][1]["metrics"]["accuracy"]["value"] == 0.75
    text = (tmp_path / MARKDOWN).read_text()
    assert "| gsm8k (avg@1, 4 problems) | 0.500 [" in text
    assert "a&#124;b" in text


def test_results_of_a_benchmark_depend_on_its_own_settings(tmp_path: Path) -> None:
    benchmark = BenchmarkPrompts("gsm8k", (make_prompt(),), 4, 1)

    def settings(*overrides: str, of: BenchmarkPrompts = benchmark, template: str = "t") -> dict[str, object]:
        config = Config.load("launch/configs/tiny-cpu.yaml", overrides)
        return benchmark_settings(config, str(tmp_path), of, template)

    save_file({"weight": np.zeros(8, np.float32)}, tmp_path / "model.safetensors")
    before = settings()
    assert (before["evaluation.samples"], before[BENCHMARK]) == (4, "gsm8k")
    assert json.loads(json.dumps(before)) == before
    free = ("data.source=other.jsonl", "rewards.correct_above=0.5", "data.eval_prompts=7", "evaluation.samples=9")
    assert settings(*free) == before
    for override in ("run.seed=1", "rollout.max_new_tokens=32", "evaluation.sampling.top_p=0.5"):
        assert settings(override) != before
    assert settings(template="other") != before
    assert settings(of=replace(benchmark, samples=5)) != before


def test_benchmarks_of_a_run_are_not_those_of_an_evaluation() -> None:
    config = Config.load(None, ["evaluation.benchmarks=[aime24]", "rewards.functions=[{function: 'mine:score'}]"])
    assert for_evaluation(config).evaluation.benchmarks == ()
    assert for_evaluation(config).rewards == config.rewards
    asked = (BenchmarkSettings(name="gsm8k"),)
    alone = for_evaluation(config, asked)
    assert alone.evaluation.benchmarks == asked
    assert alone.rewards.names == [FUNCTION]
