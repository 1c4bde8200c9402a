"""Metrics, tables and files of finished problems, and the progress display."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from adagrpo_ray.errors import ResourceError
from adagrpo_ray.evaluation.comparison import Comparison, compare
from adagrpo_ray.evaluation.progress_line import EvaluationProgress
from adagrpo_ray.evaluation.results import CompletionResult, ProblemResult
from adagrpo_ray.evaluation.table import JSON, MARKDOWN, markdown, report, save
from adagrpo_ray.runs.terminal import rich_console


def completion(mark: str) -> CompletionResult:
    """A completion by its mark.

    'R': correct, in the prompted format. 'r': correct, in another format. 'a': incorrect, but contains the answer.
    'x': incorrect and cut off.
    """
    return CompletionResult(
        text="word " * (2 if mark == "R" else 4),
        tokens=3 if mark == "R" else 5,
        cut_off=mark == "x",
        reward=1.0,
        correct=mark in "Rr",
        correct_format=mark == "R",
        correct_anywhere=mark in "Rra",
    )


def results(*marks: str, difficulty: str = "") -> list[ProblemResult]:
    return [
        ProblemResult(
            "m",
            "s",
            str(number),
            "1+2",
            "3",
            difficulty and f"{difficulty} {number % 2}",
            "",
            (*map(completion, text),),
        )
        for number, text in enumerate(marks)
    ]


def compared(*models: list[ProblemResult]) -> Comparison:
    return compare([(f"model {i}", f"runs/{i}", str(i) * 12, model) for i, model in enumerate(models)])


def shown(comparison: Comparison, width: int) -> str:
    stream = io.StringIO()
    console = rich_console(stream, live=False, width=width)
    for part in report(comparison, width):
        console.print(part, soft_wrap=isinstance(part, str))
    return stream.getvalue()


def test_metrics_are_means_over_problems() -> None:
    (model,) = compared(results("RRrx", "xxxa")).models
    values = {name: estimate.value for name, estimate in model.metrics.items()}
    assert values == pytest.approx(
        {
            "accuracy": 3 / 8,
            "pass@1": 3 / 8,
            "pass@2": 1 / 2,  # with one incorrect completion, no pair is incorrect
            "pass@4": 1 / 2,
            "correct_answer_and_format": 2 / 8,
            "correct_answer_anywhere": 4 / 8,
            "correct_format": 2 / 8,
            "format_errors": 6 / 8,
            "cut_off": 4 / 8,
            "tokens": (2 * 3 + 6 * 5) / 8,
            "characters": (2 * 10 + 6 * 20) / 8,
        }
    )
    assert all(e.low <= e.value <= e.high for e in model.metrics.values())


def test_intervals_narrow_with_more_problems_and_are_reproducible() -> None:
    few, many = (compared(results(*["Rx", "xx", "RR"] * n)).models[0].metrics["accuracy"] for n in (3, 30))
    assert 0 < few.low < many.low < many.value < many.high < few.high < 1
    assert compared(results(*["Rx", "xx", "RR"] * 3)).models[0].metrics["accuracy"] == few


def test_shares_of_0_and_1_have_an_interval() -> None:
    (model,) = compared(results(*["x"] * 10)).models
    accuracy, wrong, tokens = (model.metrics[name] for name in ("accuracy", "format_errors", "tokens"))
    assert (accuracy.value, accuracy.low) == (0.0, 0.0)
    assert accuracy.high == pytest.approx(0.2775, abs=1e-4)  # Wilson's
    assert (wrong.value, wrong.low, wrong.high) == (1.0, pytest.approx(1 - accuracy.high), 1.0)
    assert (tokens.low, tokens.high) == (5.0, 5.0)


def test_single_problem_has_no_interval() -> None:
    comparison = compared(results("Rx"), results("RR"))
    assert comparison.models[0].metrics["accuracy"].low is None
    assert json.dumps(comparison.to_dict(), allow_nan=False)
    assert "[" not in shown(comparison, 200)


def test_differences_are_paired() -> None:
    """Problems differ much more than the models do on each problem."""
    base, better = results(*["x", "R"] * 20), results(*["x", "R"] * 19, "R", "R")
    comparison = compared(base, better, base)
    first, same, back = comparison.differences
    accuracy = first.metrics["accuracy"]
    assert (first.first, first.second, first.better, first.worse) == ("model 0", "model 1", 1, 0)
    assert accuracy.value == pytest.approx(1 / 40)
    assert 0 <= accuracy.low <= accuracy.value <= accuracy.high < 0.1
    alone = comparison.models[0].metrics["accuracy"]
    assert alone.high - alone.low > 0.2
    assert (same.metrics["accuracy"].value, same.metrics["accuracy"].low, same.metrics["accuracy"].high) == (0, 0, 0)
    assert (back.better, back.worse) == (0, 1)


def test_table_shows_all_models_side_by_side() -> None:
    comparison = compared(results("RRrx", "xxxa", difficulty="class"), results("RRRR", "RRxx", difficulty="class"))
    text = shown(comparison, 200)
    lines = {line.strip().split("  ")[0]: line for line in text.splitlines()}
    assert "model 0" in text.splitlines()[1]
    assert "model 1" in text.splitlines()[1]
    assert lines["accuracy (avg@4)"].split()[2] == "0.375"
    assert "0.750 [" in lines["accuracy (avg@4)"]
    assert "class 0" in text
    assert "pass@1" not in text
    assert "+0.375" in lines["model 1 - model 0"]
    assert "2 of 2" in lines["model 1 - model 0"]
    assert "bootstrap over problems" in text
    narrow = shown(comparison, 60)
    assert max(map(len, narrow.splitlines()[:-1])) <= 60
    assert narrow.splitlines()[2].split()[-2:] == ["0.375", "0.750"]  # their intervals are in the next line
    assert narrow.splitlines()[3].count("[") == 2


def test_problems_that_failed_are_counted() -> None:
    from dataclasses import replace

    good, bad = results("Rx", "xx")
    assert "failed" not in shown(compared([good, bad]), 200)
    assert "problems failed" in shown(compared([good, replace(bad, error="no score")]), 200)


def test_judges_are_counted_by_model() -> None:
    from dataclasses import replace

    judged = {"helpful": {"requests": 1000, "prompt_tokens": 400, "completion_tokens": 20, "cost": 0.25}}
    plain = [replace(one, judges={"helpful": {"requests": 1, "prompt_tokens": 5}}) for one in results("Rx", "xx")]
    comparison = compared([replace(one, judges=judged) for one in results("Rx", "xx")], plain)
    lines = {
        line.split("  ")[1]: line.split()[-2:] for line in shown(comparison, 200).splitlines() if "helpful" in line
    }
    assert lines == {
        "helpful: requests": ["2,000", "2"],
        "helpful: tokens": ["840", "10"],
        "helpful: cost": ["0.5", "0"],
    }
    assert comparison.models[0].judges["helpful"]["prompt_tokens"] == 800
    assert "helpful" not in shown(compared(results("Rx", "xx")), 200)


def test_files_have_the_same_content(tmp_path: Path) -> None:
    comparison = compared(results("RRrx", "xxxa", difficulty="a|b"), results("RRRR", "RRxx", difficulty="a|b"))
    save(tmp_path, comparison, {"run.seed": 0, "data.source": "a|b"})
    kept = json.loads((tmp_path / JSON).read_text())
    assert kept["models"][0]["metrics"]["accuracy"]["value"] == 0.375
    assert kept["differences"][0]["metrics"]["accuracy"]["value"] == pytest.approx(0.375)
    assert kept["settings"] == {"run.seed": 0, "data.source": "a|b"}
    text = (tmp_path / MARKDOWN).read_text()
    assert text == markdown(comparison, {"run.seed": 0, "data.source": "a|b"})
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert all(line.endswith(" |") for line in rows)
    assert "a&#124;b" in text
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write"):
        save(tmp_path / "file", comparison, {})


def test_log_has_a_line_in_five_seconds_and_one_at_the_end_of_a_model() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = EvaluationProgress(2, 5, rich_console(stream, live=False, width=200), live=False, clock=lambda: now[0])
    progress.phase("starting")
    now[0] = 10.0  # the pace is measured from the first request
    progress.model("base", [1.0], 3)
    for accuracy in (0.0, 0.5):
        now[0] += 2.0
        progress.problem(accuracy, tokens=100)
    progress.model("run", [], 3)
    for _ in range(3):
        now[0] += 2.0
        progress.problem(1.0, tokens=100)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[    0.0 s] starting"
    assert lines[1] == "[   10.0 s] base: 1 of 3 problems were finished before"
    assert lines[2] == "base  2/3  accuracy so far 0.500  50 tokens/s  0:08 left"
    assert lines[3] == "base  3/3  accuracy so far 0.500  50 tokens/s  0:06 left"
    assert lines[4] == "run  3/3  accuracy so far 1.000  50 tokens/s  0:00 left"
    assert len(lines) == 5


def test_terminal_has_a_bar_and_its_cursor_is_restored() -> None:
    stream = io.StringIO()
    with EvaluationProgress(1, 2, rich_console(stream, live=True, width=80), live=True) as progress:
        progress.model("base", [], 2)
        progress.problem(1.0, 10)
        progress.problem(0.0, 10)
    output = stream.getvalue()
    assert "2/2" in output
    assert "accuracy so far 0.500" in output
    assert output.rstrip().endswith("\x1b[?25h")  # shows the cursor
