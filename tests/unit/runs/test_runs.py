"""Reading run folders, finished ones and those of running runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adagrpo_ray import reports
from adagrpo_ray.errors import HistoryError
from adagrpo_ray.runs import RunWriter, summarize
from adagrpo_ray.runs.reader import Follower, find, load
from tests.support.histories import evaluation, group, step


def make(folder: Path, steps: int = 0) -> Path:
    with RunWriter(folder, "run:\n  steps: 9\n") as run:
        for number in range(1, steps + 1):
            run.step(step(number))
    return folder


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def line(number: int) -> str:
    return json.dumps(step(number).to_dict()) + "\n"


def test_load_returns_the_records_of_a_whole_run(tmp_path: Path) -> None:
    steps, before, after = [step(1), step(2)], evaluation(0, 0.25), evaluation(2, 0.5)
    summary = summarize(steps, before, after, name="a", folder=tmp_path / "a", adapter=tmp_path / "a" / "adapter")
    with RunWriter(tmp_path / "a", "run:\n  steps: 2\n") as run:
        run.evaluation("before", before)
        for record in steps:
            run.step(record)
        run.evaluation("after", after)
        run.summary(summary)
    append(tmp_path / "a" / "samples.jsonl", json.dumps(group(1).to_dict()) + "\n")

    history = load(tmp_path / "a")

    assert (history.name, history.config) == ("a", {"run": {"steps": 2}})
    assert history.steps == tuple(steps)
    assert history.evaluations == (before, after)
    assert history.samples == (group(1),)
    assert history.summary is not None
    assert history.summary.to_dict() == summary.to_dict()
    assert history.summary.resamples_by_interval == summary.resamples_by_interval


def test_load_reads_a_run_without_samples_and_summary(tmp_path: Path) -> None:
    history = load(make(tmp_path / "a", steps=1))
    assert (history.samples, history.evaluations, history.summary) == ((), (), None)
    assert [s.step for s in history.steps] == [1]


OLD = {"reward_avg": 0.5, **{name: value for name, value in step(1).to_dict().items() if name != "reward"}}
"""A line of metrics.jsonl of an older version, in which a metric has another name."""


def test_load_refuses_metrics_of_an_older_version(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", steps=1)
    append(folder / "metrics.jsonl", json.dumps(OLD) + "\n")
    wanted = (
        r"metrics\.jsonl was written by an older version of adagrpo_ray \(no 'reward', but 'reward_avg'\); "
        "read it with that version, or choose another run$"
    )
    readers: list[Callable[[Path], object]] = [
        load,
        lambda path: Follower(path).read(),
        lambda path: reports.read(str(path)),
    ]
    for read in readers:
        with pytest.raises(HistoryError, match=wanted):
            read(folder)


def test_load_refuses_evaluations_and_summary_of_an_older_version(tmp_path: Path) -> None:
    folder, before = make(tmp_path / "a", steps=1), evaluation(0, 0.25)
    old = {"label": "before", "share": 0.25, **{k: v for k, v in before.to_dict().items() if k != "accuracy"}}
    (folder / "evaluations.jsonl").write_text(json.dumps(old) + "\n")
    with pytest.raises(HistoryError, match=r"evaluations\.jsonl was written by an older version .*no 'accuracy'"):
        load(folder)
    (folder / "evaluations.jsonl").unlink()
    summary = summarize([step(1)], None, None, name="a", folder=folder, adapter=folder / "adapter").to_dict()
    (folder / "summary.json").write_text(json.dumps({"tokens": summary.pop("generated_tokens"), **summary}))
    with pytest.raises(HistoryError, match=r"summary\.json was written by an older version .*'generated_tokens', but"):
        load(folder)


def test_line_without_a_metric_is_reported_as_broken(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", steps=1)
    line = {"label": "before", **evaluation(0, 0.25).to_dict()}
    del line["accuracy"]
    (folder / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(HistoryError, match=r"evaluations\.jsonl, line 1, is no record .*lacks 'accuracy'"):
        load(folder)


def test_incomplete_last_line_is_left_for_the_next_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", steps=1)
    follower = Follower(folder)
    whole = line(2)
    append(folder / "metrics.jsonl", whole[:40])
    assert len(follower.read().steps) == 1
    append(folder / "metrics.jsonl", whole[40:])
    assert [s.step for s in follower.read().steps] == [1, 2]


@pytest.mark.parametrize("again", [1, 2, 3])
def test_follower_reads_a_run_again_after_it_was_cut(tmp_path: Path, again: int) -> None:
    """The run then has fewer, as many or more steps than at the first read."""
    folder = make(tmp_path / "a", steps=2)
    follower = Follower(folder)
    assert len(follower.read().steps) == 2
    os.truncate(folder / "metrics.jsonl", 0)
    other = [json.dumps(step(n, reward=0.9).to_dict()) + "\n" for n in range(1, again + 1)]
    append(folder / "metrics.jsonl", "".join(other))
    assert [(s.step, s.reward) for s in follower.read().steps] == [(n, 0.9) for n in range(1, again + 1)]


@pytest.mark.parametrize("broken", ["{", "[]", "7", "null", '{"step": 1}', "\xff", "[" * 100_000])
def test_error_names_the_broken_line(tmp_path: Path, broken: str) -> None:
    folder = make(tmp_path / "a", steps=1)
    append(folder / "metrics.jsonl", broken + "\n" + line(3))
    with pytest.raises(
        HistoryError, match=r"metrics\.jsonl, line 2, is no record .* fix or remove that line"
    ) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_error_names_broken_samples_and_summary(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", steps=1)
    append(folder / "samples.jsonl", json.dumps({**group(1).to_dict(), "attempts": [{"rung": -1}]}) + "\n")
    with pytest.raises(HistoryError, match=r"samples\.jsonl, line 1, .*lacks 'sampling'"):
        load(folder)
    assert load(folder, samples=False).samples == ()
    append(folder / "summary.json", "{}")
    with pytest.raises(HistoryError, match=r"summary\.json is no summary"):
        load(folder, samples=False)


def test_load_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(HistoryError, match=r"holds no metrics\.jsonl; give the folder of a run"):
            load(folder)


def test_find_returns_runs_newest_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        make(tmp_path / name)
        os.utime(tmp_path / name / "config.yaml", (1e9 - age, 1e9 - age))
    (tmp_path / "no run").mkdir()
    (tmp_path / "a file").touch()
    assert [folder.name for folder in find(tmp_path)] == ["new", "middle", "old"]
    assert find(tmp_path / "old") == [tmp_path / "old"]
    assert find(tmp_path / "missing") == []


def test_unreadable_folder_hides_no_run(tmp_path: Path) -> None:
    make(tmp_path / "run")
    (tmp_path / "odd").symlink_to("x" * 300)
    assert find(tmp_path) == [tmp_path / "run"]
    with pytest.raises(HistoryError, match=r"cannot read xxx.*; give a folder that holds run folders"):
        find("x" * 300)
