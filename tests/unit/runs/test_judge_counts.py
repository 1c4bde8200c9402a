"""Sums of what judges consumed, over steps, evaluations and problems."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from adagrpo_ray.rewards.consumption import Consumption
from adagrpo_ray.runs.judge_counts import KINDS, added, in_words, of_records, tokens
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.summary import summarize
from tests.support.histories import BEFORE, JUDGED, STEP


def test_kinds_are_the_fields_of_consumption_and_of_both_records() -> None:
    assert [field.name for field in fields(Consumption)] == list(KINDS)
    for record in (StepRecord, EvaluationRecord):
        named = {field.name for field in fields(record) if field.name.startswith("judge_")}
        assert named == {f"judge_{kind}" for kind in KINDS}


def test_steps_and_evaluations_are_added_by_name() -> None:
    evaluated = replace(BEFORE, **JUDGED)
    other = replace(BEFORE, judge_requests={"preferred": 3})
    sums = of_records([STEP, STEP, evaluated, other, BEFORE])
    assert sums == {
        "helpful": {
            "requests": 22,
            "prompt_tokens": 2200,
            "completion_tokens": 110,
            "cache_hits": 15,
            "failures": 4,
            "cost": 0.75,
        },
        "preferred": {"requests": 3},
    }
    assert added([sums, {"preferred": {"requests": 1, "cost": 0.5}}])["preferred"] == {"requests": 4, "cost": 0.5}


def test_summary_has_the_judges_of_all_evaluations() -> None:
    evaluations = [replace(BEFORE, step=step, **JUDGED) for step in (0, 1, 2)]
    named = {"name": "x", "folder": Path("x"), "adapter": Path("x")}
    summary = summarize([STEP, STEP], evaluations[0], evaluations[-1], evaluations, **named)
    assert (summary.judges["helpful"]["requests"], summary.judges["helpful"]["cost"]) == (30, 1.75)
    assert type(summary).from_dict(summary.to_dict()).judges == summary.judges


def test_counts_are_one_line_for_people() -> None:
    counts = {"requests": 1200, "prompt_tokens": 9000, "completion_tokens": 100, "failures": 3, "cost": 0.01234}
    assert in_words(counts) == "1,200 requests, 3 completions without a score, 9,100 tokens, cost 0.01234"
    assert in_words({"requests": 2}) == "2 requests, 0 tokens"
    assert tokens({}) == 0
