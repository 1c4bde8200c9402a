"""Methods and sections, files of finished runs, the runs that are missing, and the tuning of learning rates."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import adaptive_methods as methods
import adaptive_rates as rates
import adaptive_runs as runs
import adaptive_sections as sections
import pytest
from adaptive_sections import REAL, SKILLS, UNIFORM

from tests.support.benchmark_plans import best_at, do_all, plan_of, result

# --- methods and sections


@pytest.mark.parametrize("section", list(sections.SECTIONS))
@pytest.mark.parametrize("method", list(methods.METHODS))
def test_overrides_of_a_method_are_settings(tmp_path: Path, method: str, section: str) -> None:
    case = next(iter(sections.SECTIONS[section].cases))
    config = sections.configure(sections.Run(section, case, method, "1e-3", 3), tmp_path)
    assert config.run.seed == 3
    assert config.learner.learning_rate == 1e-3
    assert config.evaluation.every > 0


def test_each_section_has_the_base_first() -> None:
    for section in sections.SECTIONS:
        assert methods.methods_of(section)[0] == methods.BASE


def test_every_case_of_a_section_has_its_steps() -> None:
    for section in sections.SECTIONS.values():
        assert set(section.cases) == set(section.steps)
        assert section.tuned_on in section.cases
        assert not set(range(section.seeds)) & set(sections.TUNING_SEEDS)


@pytest.mark.parametrize("section", list(sections.SECTIONS))
def test_no_two_methods_of_a_section_have_the_same_settings(tmp_path: Path, section: str) -> None:
    plan = plan_of(tmp_path, sections.SECTIONS[section], names=tuple(methods.methods_of(section)))
    assert {method: plan.method_of(method) for method in plan.methods} == {method: method for method in plan.methods}


@pytest.mark.parametrize("section", list(sections.SECTIONS))
def test_published_rule_has_none_of_the_defaults_of_the_package(tmp_path: Path, section: str) -> None:
    case = next(iter(sections.SECTIONS[section].cases))
    config = sections.configure(sections.Run(section, case, "adagrpo-published", "1e-3", 3), tmp_path)
    chosen = config.algorithm
    assert (chosen.selection, chosen.advantage_scale, chosen.advantage_statistics) == ("last", "std", "all")
    assert (chosen.updates_per_batch, chosen.allocates, chosen.resample) == (1, False, "immediate")
    retries = [(trigger.from_step, sum(rung.times for rung in trigger.rungs)) for trigger in chosen.triggers]
    assert retries == [(1, 2), (100, 4), (300, 8), (700, 16)]


@pytest.mark.parametrize(
    ("method", "updates", "selection", "scale"),
    [
        ("grpo", 1, "last", "std"),
        ("dapo", 1, "last", "std"),
        ("pilot-commit", 1, "all", "std"),
        ("reinforce-ada", 1, "balanced", "none"),
    ],
)
def test_rows_of_other_authors_have_the_settings_of_their_rules(
    tmp_path: Path, method: str, updates: int, selection: str, scale: str
) -> None:
    config = sections.configure(sections.Run("skills", "all", method, "1e-3", 3), tmp_path)
    chosen = config.algorithm
    assert (chosen.updates_per_batch, chosen.selection, chosen.advantage_scale) == (updates, selection, scale)
    assert not chosen.allocates


def test_class_of_a_prompt_is_hidden_from_the_unlabelled_row(tmp_path: Path) -> None:
    labelled, hidden = (
        sections.configure(sections.Run("skills", "all", method, "1e-3", 0), tmp_path).data.columns
        for method in ("adagrpo", "adagrpo-unlabelled")
    )
    assert (labelled.difficulty, hidden.difficulty) == ("skill", None)
    assert labelled.problem == hidden.problem == "bundle"


def test_rates_of_the_real_section_are_those_of_all_candidates(tmp_path: Path) -> None:
    config = rates.settings(REAL, "all", tmp_path)
    assert len(config.reasoning_gym.tasks) == len(rates.CANDIDATES)
    assert config.data.eval_prompts == 32 * len(rates.CANDIDATES)


def test_table_of_rates_is_ordered_and_has_the_wanted_ones() -> None:
    lines = rates.table({"easy": 0.75, "hard": 0.25}, 100, {"easy": 0.8, "hard": 0.2}).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["hard", "easy"]
    assert lines[2] == "| hard | 0.2500 | 0.1755 to 0.3430 | 0.2 |"
    assert "wanted" not in rates.table({"easy": 0.75}, 100, {})


# --- files


RUN = sections.Run("skills", "all", "grpo", "1e-3", 0)


def test_written_result_is_found_again(tmp_path: Path) -> None:
    assert runs.Store(tmp_path).find(RUN) is None
    found = result(100)
    runs.Store(tmp_path).write(RUN, found)
    assert runs.Store(tmp_path).find(RUN) == found
    assert runs.Store(tmp_path).find(replace(RUN, seed=1)) is None
    (file,) = (tmp_path / "runs").iterdir()
    assert file.name.startswith("skills-all-grpo-1e-3-0-")
    assert json.loads(file.read_text())["settings"]["algorithm"]["name"] == "grpo"


def test_run_of_another_definition_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.Store(tmp_path).write(RUN, result(100))
    changed = methods.Method("", ("algorithm.name=grpo", "algorithm.num_iterations=2"))
    monkeypatch.setitem(methods.METHODS, "grpo", changed)
    for cache in (runs.settings_hash, sections.configure):
        cache.cache_clear()
    try:
        assert runs.Store(tmp_path).find(RUN) is None
    finally:
        for cache in (runs.settings_hash, sections.configure):
            cache.cache_clear()


def test_hash_of_a_default_of_the_method_is_that_of_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = ("algorithm.train_on=max_variance", "algorithm.train_size=4")
    monkeypatch.setitem(methods.METHODS, "named", methods.Method("", named))
    # By default each step has a number of updates of its own, so that this row is another one.
    monkeypatch.setitem(methods.METHODS, "fixed", methods.Method("", (*named, "algorithm.num_iterations=2")))
    of_defaults, of_values, of_fixed, of_others = (
        runs.settings_hash(replace(RUN, method=method), tmp_path)
        for method in ("adagrpo", "named", "fixed", "adagrpo-scale-mean")
    )
    assert of_defaults == of_values
    assert len({of_defaults, of_fixed, of_others}) == 3


def test_settings_of_an_allocation_count_only_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpo", "adagrpo"):
        changed = (f"algorithm.name={name}", "algorithm.allocation.discount=0.6")
        monkeypatch.setitem(methods.METHODS, f"{name}-changed", methods.Method("", changed))
    of = {m: runs.settings_hash(replace(RUN, method=m), tmp_path) for m in methods.METHODS}
    assert of["grpo"] == of["grpo-changed"]
    assert of["adagrpo"] != of["adagrpo-changed"]


def test_hash_changes_with_settings_and_end_and_not_with_the_folder(tmp_path: Path) -> None:
    own = runs.settings_hash(RUN, tmp_path)
    others = [
        runs.settings_hash(other, tmp_path)
        for other in (replace(RUN, rate="3e-3"), replace(RUN, seed=1), replace(RUN, until=0.8))
    ]
    assert len({own, *others}) == 4
    assert runs.settings_hash(RUN, tmp_path / "elsewhere") == own


def test_half_written_result_does_not_count(tmp_path: Path) -> None:
    file = runs.Store(tmp_path).file(RUN)
    file.parent.mkdir()
    file.with_name(f"{file.name}.part").write_text('{"points": [')
    assert runs.Store(tmp_path).find(RUN) is None


# --- tuning


def test_learning_rates_are_half_a_decade_apart() -> None:
    up = ["1e-4"]
    while len(up) < 5:
        up.append(runs.neighbour(up[-1], up=True))
    assert up == ["1e-4", "3e-4", "1e-3", "3e-3", "1e-2"]
    assert [runs.neighbour(rate, up=False) for rate in up[1:]] == up[:-1]


def test_first_runs_are_those_of_the_tuning(tmp_path: Path) -> None:
    missing = plan_of(tmp_path).missing()
    assert {run.method for run in missing} == {"grpo", "dapo"}
    assert {run.seed for run in missing} == set(sections.TUNING_SEEDS)
    assert {run.rate for run in missing} == set(SKILLS.rates)
    assert {run.until for run in missing} == {0.8}


def test_final_runs_have_the_best_rate_and_no_end_before_the_last_step(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    done = do_all(plan, best_at("1e-3"))
    final = [run for run in done if run.seed not in sections.TUNING_SEEDS]
    assert {(run.method, run.rate, run.seed, run.until) for run in final} == {
        (method, "1e-3", seed, None) for method in ("grpo", "dapo") for seed in (0, 1)
    }
    assert len(done) == 2 * (3 * 2 + 2)
    assert plan.complete
    assert not plan.tuned("grpo").at_edge


def test_more_seeds_need_only_the_runs_of_those(tmp_path: Path) -> None:
    do_all(plan_of(tmp_path), best_at("1e-3"))
    assert {run.seed for run in plan_of(tmp_path, seeds=4).missing()} == {2, 3}


def test_grid_grows_while_the_best_rate_is_at_its_edge(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, UNIFORM, names=("grpo",), seeds=1)
    do_all(plan, lambda run: result(1000 + int(1000 * abs(math.log10(float(run.rate) / 1e-2)))))
    assert plan.tuned("grpo") == runs.Tuned("1e-2", ("3e-4", "1e-3", "3e-3", "1e-2", "3e-2"))
    assert not plan.tuned("grpo").at_edge


def test_grid_has_no_rate_above_the_highest_of_the_section(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, names=("grpo",))
    done = do_all(plan, lambda run: result(int(10 / float(run.rate))))  # the higher, the better
    assert {run.rate for run in done} == set(SKILLS.rates)
    assert plan.tuned("grpo") == runs.Tuned("3e-3", ("1e-3", "3e-3"), "3e-3")
    assert not plan.tuned("grpo").at_edge


def test_rates_of_a_section_are_not_above_its_highest() -> None:
    for section in sections.SECTIONS.values():
        assert [float(rate) for rate in section.rates] == sorted(map(float, section.rates))
        assert section.highest is None or float(section.rates[-1]) <= float(section.highest)


def test_grid_grows_by_two_rates_at_most(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, names=("grpo",))
    do_all(plan, lambda run: result(int(1e6 * float(run.rate))))  # the lower, the better
    assert plan.tuned("grpo") == runs.Tuned("1e-4", ("1e-4", "3e-4", "1e-3", "3e-3"), "3e-3")
    assert plan.tuned("grpo").at_edge


def test_rate_that_reaches_the_target_more_often_is_better(tmp_path: Path) -> None:
    def outcome(run: Any) -> Any:
        misses = run.rate != "1e-3" and run.seed == sections.TUNING_SEEDS[0]
        return result(10, 0.0, 0.1, 0.1, 0.1) if misses else result(5000)

    plan = plan_of(tmp_path, names=("grpo",))
    do_all(plan, outcome)
    assert plan.tuned("grpo").rate == "1e-3"


def test_rate_with_the_highest_accuracy_is_chosen_if_none_reaches_the_target(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, names=("grpo",))
    do_all(plan, lambda run: result(10, 0.0, *[0.5 if run.rate == "1e-3" else 0.1] * 3))
    assert plan.tuned("grpo").rate == "1e-3"


# --- plans


def test_base_is_always_among_the_methods(tmp_path: Path) -> None:
    assert plan_of(tmp_path, names=("dapo",)).methods == ("grpo", "dapo")


def test_target_of_the_real_section_is_the_accuracy_of_the_base_at_its_end(tmp_path: Path) -> None:
    section = replace(REAL, rates=("1e-4", "3e-4"), highest="3e-4", tuning_seeds=(100,))
    plan = plan_of(tmp_path, section, seeds=3)
    assert plan.target is None
    assert {(run.method, run.until) for run in plan.missing()} == {("grpo", None)}
    ends = {0: 0.3, 1: 0.5, 2: 0.4, 100: 0.2}
    done = do_all(plan, lambda run: result(100, 0.0, *[ends[run.seed] + (run.rate == "3e-4") / 100] * 3))
    assert plan.target == pytest.approx(0.41)
    assert {run.until for run in done if run.method == "dapo"} == {plan.target}
    assert {run.until for run in done if run.method == "grpo"} == {None}
    assert {run.seed for run in done} == {0, 1, 2, 100}


def test_single_rate_is_that_of_all_methods_without_tuning(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, REAL, seeds=3)
    assert plan.outstanding() == (0, 6)
    done = do_all(plan, lambda run: result(100, 0.0, 0.4, 0.4, 0.4))
    assert {run.rate for run in done} == set(REAL.rates) == {"3e-4"}
    assert {(run.method, run.seed) for run in done} == {(m, seed) for m in ("grpo", "dapo") for seed in range(3)}
    tuned = plan.tuned("dapo")
    assert (tuned.rate, tuned.at_edge) == ("3e-4", False)


def test_method_with_the_settings_of_another_shares_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "same", methods.Method("", ("algorithm.resample=deferred",)))
    plan = plan_of(tmp_path, names=("grpo", "adagrpo", "same"))
    assert plan.method_of("same") == "adagrpo"
    done = do_all(plan, best_at("1e-3"))
    assert {run.method for run in done} == {"grpo", "adagrpo"}
    assert plan.final("same") == plan.final("adagrpo")


def test_row_that_is_not_tuned_has_the_rate_of_another_method(tmp_path: Path) -> None:
    row = "adagrpo-one-update"
    assert methods.METHODS[row].rate_of == "adagrpo"
    plan = plan_of(tmp_path, names=(row,))
    assert plan.outstanding() == (2 * len(SKILLS.rates) * len(SKILLS.tuning_seeds), 2 * plan.seeds)
    done = do_all(plan, best_at("1e-3"))
    tuning = {(run.method, run.seed) for run in done if run.seed in sections.TUNING_SEEDS}
    assert tuning == {(method, seed) for method in ("grpo", "adagrpo") for seed in sections.TUNING_SEEDS}
    assert {(run.method, run.rate) for run in done if run.seed not in sections.TUNING_SEEDS} == {
        ("grpo", "1e-3"),
        (row, "1e-3"),
    }


def test_uniform_section_is_tuned_on_one_success_rate(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, UNIFORM, names=("grpo",), seeds=1)
    done = do_all(plan, best_at("1e-3"))
    assert {run.case for run in done if run.until is not None} == {"0.04"}
    assert {run.case for run in done if run.until is None} == {"0.01", "0.04", "0.20", "0.50"}
