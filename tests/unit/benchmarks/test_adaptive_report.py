"""The curve of a run, the estimate of missing runs, and the report of finished ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import adaptive
import adaptive_methods as methods
import adaptive_report as report
import pytest
from adaptive_page import page, section_of
from adaptive_sections import REAL, UNIFORM

from tests.support.benchmark_plans import best_at, do_all, plan_of, result
from tests.support.histories import evaluation, step

# --- curves


def test_curve_adds_up_costs_and_counts_each_update() -> None:
    curve = adaptive.Curve(until=None, tokens=None)
    curve.evaluation("before", evaluation(0, 0.25))
    for number in (1, 2):
        curve.step(replace(step(number), generated_tokens=100, trained_tokens=40, passes=3, step_time=0.5))
    curve.evaluation("step 2", evaluation(2, 0.5))
    first, last = curve.points
    assert (first.step, first.tokens, first.trained_tokens, first.seconds, first.accuracy) == (0, 0, 0, 0.0, 0.25)
    assert (last.step, last.tokens, last.trained_tokens, last.seconds, last.accuracy) == (2, 200, 240, 1.0, 0.5)


def test_curve_ends_at_the_smoothed_accuracy() -> None:
    curve = adaptive.Curve(until=0.5, tokens=None)
    for number, accuracy in enumerate((0.0, 0.0, 0.9)):
        curve.evaluation("", evaluation(number, accuracy))
    with pytest.raises(adaptive.Ended):
        curve.evaluation("", evaluation(3, 0.9))


def test_curve_ends_after_its_tokens() -> None:
    curve = adaptive.Curve(until=None, tokens=150)
    curve.step(replace(step(1), generated_tokens=100))
    curve.evaluation("", evaluation(1, 0.1))
    curve.step(replace(step(2), generated_tokens=100))
    with pytest.raises(adaptive.Ended):
        curve.evaluation("", evaluation(2, 0.1))
    assert len(curve.points) == 2


# --- estimate


def test_estimate_counts_missing_runs_and_hours(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert adaptive.estimate(plan).startswith("skills: missing 8 tuning runs and 4 final runs, hours unknown")
    first, *_ = plan.missing()
    plan.store.write(first, replace(result(100), wall_seconds=360.0))
    assert adaptive.estimate(plan) == "skills: missing 7 tuning runs and 4 final runs, about 1.1 hours"
    do_all(plan, best_at("1e-3"))
    assert adaptive.estimate(plan) == "skills: missing 0 tuning runs and 0 final runs, about 0.0 hours"


def test_commit_is_unknown_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert adaptive.commit() == "unknown"


# --- report


def test_json_has_lists_by_seed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    do_all(plan, best_at("1e-3"))
    found = report.as_json(plan)
    assert set(found) == {"grpo", "dapo"}
    entry = found["grpo"]
    assert entry["target"] == 0.8
    assert entry["learning_rate"] == 1e-3
    for key in ("tokens_to_target", "trained_tokens_to_target", "seconds_to_target", "curve", "final_accuracy"):
        assert len(entry[key]) == 2
    assert entry["final_accuracy_by_class"] == [{"swap": 0.9}] * 2
    assert set(entry["curve"][0][0]) == {"step", "tokens", "trained_tokens", "seconds", "accuracy"}


def test_json_of_a_section_with_several_cases_has_them_on_top(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, UNIFORM, names=("grpo",), seeds=1)
    do_all(plan, best_at("1e-3"))
    found = report.as_json(plan)
    assert list(found) == ["0.01", "0.04", "0.20", "0.50"]
    assert len(found["0.50"]["grpo"]["tokens_to_target"]) == 1


def test_missed_target_is_null_and_a_bound_in_the_table(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    misses = result(1000, 0.0, 0.1, 0.1, 0.1)
    do_all(plan, lambda run: misses if run.method == "dapo" and run.seed == 0 else best_at("1e-3")(run))
    assert report.as_json(plan)["dapo"]["tokens_to_target"][0] is None
    head, _, grpo, dapo = report.table(plan, "all", 0.8).splitlines()
    assert head.count("|") == grpo.count("|") == dapo.count("|")
    assert "| 2 of 2 |" in grpo
    assert "| 1.00 [1.00, 1.00] |" in grpo
    assert "| 1 of 2 |" in dapo
    assert "≥ " in dapo


def test_partial_report_is_written_with_the_seeds_that_are_there(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, names=("grpo",))
    while not (final := [run for run in plan.missing() if run.until is None]):
        for run in plan.missing():
            plan.store.write(run, best_at("1e-3")(run))
    assert report.write_report([plan], tmp_path / "report") == "skills: no final runs yet"
    assert not (tmp_path / "report").exists()
    plan.store.write(final[0], result(1000))
    lines = report.write_report([plan], tmp_path / "report").splitlines()
    assert lines[0] == "skills: missing runs: 1 or more"
    text = (tmp_path / "report" / "algorithm.md").read_text()
    assert "Missing runs: 1 or more." in text
    assert "| 1 of 1 |" in text
    assert report.publish([plan], tmp_path / "docs") == ""
    assert not (tmp_path / "docs").exists()


def test_complete_section_is_published(tmp_path: Path) -> None:
    plan, real = plan_of(tmp_path), plan_of(tmp_path, REAL)
    do_all(plan, best_at("3e-2"))
    assert report.publish([plan, real], tmp_path / "docs").startswith("complete sections: ")
    text = (tmp_path / "docs" / "algorithm.md").read_text()
    assert "Without finished runs yet: real, uniform." in text
    assert "results/skills.json" in text
    assert (tmp_path / "docs" / "algorithm-skills.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "docs" / "results" / "skills.json").read_text()) == report.as_json(plan)
    assert not (tmp_path / "docs" / "results" / "real.json").exists()


def test_section_without_runs_stays_on_the_page(tmp_path: Path) -> None:
    skills, uniform, docs = plan_of(tmp_path), plan_of(tmp_path, UNIFORM, names=("grpo",), seeds=1), tmp_path / "docs"
    do_all(skills, best_at("3e-2"))
    report.publish([skills], docs)
    kept = section_of((docs / "algorithm.md").read_text(), "skills")
    assert kept.startswith("## skills")
    do_all(uniform, best_at("1e-3"))
    for _ in range(2):
        report.publish([uniform], docs)
        text = (docs / "algorithm.md").read_text()
        assert f"\n\n{kept}\n\n## uniform\n" in text
        assert "Without finished runs yet: real." in text
        assert [text.count(f"\n## {name}\n") for name in ("skills", "uniform", "The methods")] == [1, 1, 1]


def test_page_warns_of_a_rate_at_the_edge_and_names_shared_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.METHODS, "same", methods.Method("The same.", ("algorithm.name=grpo",)))
    plan = plan_of(tmp_path, names=("grpo", "same"))
    do_all(plan, lambda run: result(int(1e6 * float(run.rate))))
    text = page([report.section_results(plan, 0.8)])
    assert "Warning: the learning rate of grpo, same lies at the edge" in text
    assert "same (grpo)" in text
    assert "| same | The same. |" in text
