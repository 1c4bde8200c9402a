"""The files of the fixture `whole`: its report, samples and checkpoints, without secrets."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.reports import read
from adagrpo_ray.reports.bars import by_interval
from adagrpo_ray.runs import EvaluationRecord, GroupSample
from adagrpo_ray.runs.reader import load
from tests.support.program import PLANTED
from tests.support.report_page import CHARTS, check_pictures, drawings, heights, page_of


class TestReport:
    def test_a_finished_run_has_a_report_that_equals_its_summary(self, whole: Path) -> None:
        summary = json.loads((whole / "summary.json").read_text())
        page = page_of(whole / "report.html")
        numbers = page.numbers()

        assert numbers["state"] == "finished"
        assert numbers["steps"] == f"{summary['steps']}"
        assert numbers["held-out accuracy before"] == f"{summary['eval_accuracy_before']:.3f}"
        assert numbers["held-out accuracy after"] == f"{summary['eval_accuracy_after']:.3f}"
        assert numbers["tokens generated"] == f"{summary['generated_tokens']:,}"
        assert numbers["of these by resamples"] == f"{summary['extra_tokens']:,}"
        assert numbers["tokens trained on"] == f"{summary['trained_tokens']:,}"
        assert numbers["resamples"] == f"{sum(summary['resamples']):,}"
        assert numbers["of these met the criterion"] == f"{sum(summary['rescued']):,}"
        for difficulty, accuracy in summary["eval_accuracy_by_difficulty_after"].items():
            assert [row[3] for row in page.rows if row[:2] == [difficulty, "run"]] == [f"{accuracy:.3f}"]
        assert "prompts_per_step: 4" in page.text
        assert PLANTED not in page.text

    def test_plots_are_on_the_page_and_in_files(self, whole: Path) -> None:
        check_pictures(whole, CHARTS)
        assert len(drawings(whole / "report.html")) == len(CHARTS)

    def test_bars_are_the_intervals_of_the_summary(self, whole: Path) -> None:
        summary = json.loads((whole / "summary.json").read_text())
        chart = by_interval([read(str(whole))], 1)
        intervals = summary["resamples_by_interval"]
        assert heights(chart.figure, 0) == pytest.approx([i["reward"] or 0.0 for i in intervals])
        met, rest = np.array(heights(chart.figure, 1)).reshape(2, -1)
        assert (met + rest).tolist() == [i["resamples"] for i in intervals]
        assert met.sum() == sum(summary["rescued"])

    def test_the_page_needs_no_other_file(self, whole: Path) -> None:
        page = page_of(whole / "report.html")
        policy = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
        assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
        assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "img", "base", "form"}
        links = [
            value or "" for _, a in page.tags for name, value in a.items() if name in ("src", "href", "xlink:href")
        ]
        assert links
        assert all(link.startswith("#") for link in links)
        assert not re.search(r"@import|url\((?!#)", (whole / "report.html").read_text())

    def test_ids_on_the_page_are_unique(self, whole: Path) -> None:
        ids = [a["id"] for _, a in page_of(whole / "report.html").tags if "id" in a]
        assert len(ids) == len(set(ids)) > len(CHARTS)


def test_the_reader_reads_a_run_of_the_program(whole: Path) -> None:
    history = load(whole)
    assert [s.step for s in history.steps] == [1, 2, 3, 4]
    assert history.summary is not None
    assert history.summary.steps == 4
    assert history.config["algorithm"]["prompts_per_step"] == 4
    assert all(isinstance(record, EvaluationRecord) for record in history.evaluations)


def test_samples_has_groups_of_every_step(whole: Path) -> None:
    settings = yaml.safe_load((whole / "config.yaml").read_text())["algorithm"]
    trained = {"trained", *(["exhausted"] if settings["on_exhausted"] == "train" else [])}
    groups = [GroupSample.from_dict(values) for values in map(json.loads, (whole / "samples.jsonl").open("rb"))]
    assert {group.step for group in groups} == {1, 2, 3, 4}
    assert all(0 < sum(g.step == step for g in groups) <= 4 for step in range(1, 5))
    assert any(group.resampled for group in groups)
    for group in groups:
        assert "+" in group.prompt
        assert group.difficulty.endswith("digits")
        assert [a.rung for a in group.attempts] == sorted({a.rung for a in group.attempts})
        for sampled in group.attempts:
            assert all(0 <= c.weight_version < group.step and c.tokens for c in sampled.completions)
            assert all(c.correct == (c.rewards["exact"] > 0) for c in sampled.completions)
        newest = [c.advantage for c in group.attempts[-1].completions]
        assert any(a is not None for a in newest) == (group.outcome in trained)


def test_no_file_of_a_run_contains_an_environment_variable(whole: Path) -> None:
    files = [file for file in whole.rglob("*") if file.is_file()]
    assert {"config.yaml", "metrics.jsonl", "summary.json"} <= {file.name for file in files}
    assert [file for file in files if PLANTED.encode() in file.read_bytes()] == []


def test_the_log_of_the_engine_is_in_the_run_folder(whole: Path) -> None:
    """At a level that the terminal does not show."""
    assert re.search(r"INFO .* KV cache size: [\d,]+ tokens", (whole / "vllm" / "rollout-actor-0.log").read_text())


@pytest.mark.parametrize("damage", ["cut", "emptied", "one bit", "gone"])
def test_any_damage_to_a_file_of_a_checkpoint_is_found(whole: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path, dirs_exist_ok=True)
    files = sorted((tmp_path / "step-000004").iterdir())
    kinds = ("adapter", "checksums", "optimizer", "random", "sampler", "sampler", "state")
    assert tuple(file.stem for file in files) == kinds
    for file in files:
        good = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            place = random.randrange(len(good))
            changed = good[:place] + bytes([good[place] ^ 1 << random.randrange(8)]) + good[place + 1 :]
            file.write_bytes({"cut": good[:place], "emptied": b"", "one bit": changed}[damage])
        notices: list[str] = []
        assert checkpoint.newest(tmp_path, notices.append) == tmp_path / "step-000003", file
        assert [f"{tmp_path}/step-000004 is damaged" in text for text in notices] == [True]
        file.write_bytes(good)
    assert checkpoint.newest(tmp_path, notices.append) == tmp_path / "step-000004"
