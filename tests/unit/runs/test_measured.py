"""Metrics that were not measured are None, and numbers that are not finite are refused."""

from __future__ import annotations

import json
import math
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.errors import AdaGRPOError, HistoryError, RecordError
from adagrpo_ray.reports import Run, tables
from adagrpo_ray.reports.curves import curves
from adagrpo_ray.runs import panels
from adagrpo_ray.runs.final_lines import report
from adagrpo_ray.runs.measured import mean, measured, ratio
from adagrpo_ray.runs.metric import scalars, values_of
from adagrpo_ray.runs.reader import RunHistory, load
from adagrpo_ray.runs.record import Record
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.summary import summarize
from adagrpo_ray.runs.wording import step_metrics
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.metrics import sampling_metrics
from adagrpo_ray.viewer import plot
from adagrpo_ray.viewer import side_by_side as comparison
from adagrpo_ray.viewer.run_curves import Curve, Plot
from tests.support.builders import make_attempt, make_group
from tests.support.histories import BEFORE, STEP, attempt, step

LARGEST = float(np.finfo(np.float32).max)
NOT_FINITE = [math.nan, math.inf, -math.inf, np.float32("inf"), np.float64("nan")]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", [name for name, hint in get_type_hints(StepRecord).items() if "float" in str(hint)])
def test_record_refuses_numbers_that_are_not_finite_and_names_the_field(name: str, value: float) -> None:
    inside = {"of this": value} if isinstance(getattr(STEP, name), Mapping) else value
    with pytest.raises(RecordError, match=rf"^StepRecord\.{name}.* is (nan|-?inf), .*fault of adagrpo_ray") as caught:
        replace(STEP, **{name: inside})
    assert ("['of this']" in str(caught.value)) == (inside is not value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # Ray carries it between processes
    assert isinstance(caught.value, AdaGRPOError)


def test_all_kinds_of_records_refuse_numbers_that_are_not_finite() -> None:
    with pytest.raises(RecordError, match=r"EvaluationRecord\.accuracy is nan"):
        replace(BEFORE, accuracy=math.nan)
    completion = attempt([0.0, 1.0]).completions[0]
    with pytest.raises(RecordError, match=r"CompletionSample\.rewards\['exact'\] is inf"):
        replace(completion, rewards={"exact": math.inf})
    summary = summarize([STEP], None, None, name="n", folder="f", adapter="a")
    with pytest.raises(RecordError, match=r"Summary\.frac_reward_zero_std_by_difficulty\['5'\] is -inf"):
        replace(summary, frac_reward_zero_std_by_difficulty={"5": -math.inf})


def test_unmeasured_metric_is_null_in_json_and_none_when_read() -> None:
    unknown = {name: None for name, hint in get_type_hints(StepRecord).items() if hint == float | None}
    assert len(unknown) > 20
    record = replace(STEP, **unknown)
    text = json.dumps(record.to_dict(), allow_nan=False)
    assert all(json.loads(text)[name] is None for name in unknown)
    assert StepRecord.from_dict(json.loads(text)) == record


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"loss": math.nan}, r"StepRecord\.loss is nan"),
        ({"rewards_mean": {"exact": math.inf}}, r"StepRecord\.rewards_mean\['exact'\] is inf"),
        ({"step_time": None}, "step_time is null"),
        ({"step": None}, "step is null"),
    ],
)
def test_load_refuses_an_invalid_line_and_names_its_number(tmp_path: Path, line: dict[str, Any], reason: str) -> None:
    lines = [STEP.to_dict(), {**STEP.to_dict(), **line}]
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    with pytest.raises(HistoryError, match=rf"metrics\.jsonl, line 2, .*{reason}"):
        load(tmp_path)


def test_unmeasured_metrics_have_no_scalar() -> None:
    tags = scalars(replace(STEP, loss=None, rewards_mean={"exact": 0.5, "length": None}))
    assert "loss" not in tags
    assert "rewards/length/mean" not in tags
    assert tags["rewards/exact/mean"] == 0.5
    assert all(math.isfinite(value) for value in [*tags.values(), *scalars(BEFORE).values()])


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))))
@example([sys.float_info.max] * 3)
def test_mean_is_finite_and_between_smallest_and_largest_value(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    found = mean(values)
    assert (found is None) == (not known)
    if found is not None:
        room = 1e-12 * max(map(abs, known))
        assert min(known) - room <= found <= max(known) + room


def test_ratio_to_zero_is_none() -> None:
    assert ratio(3.0, 0.0) is None
    assert ratio(0.0, 4.0) == 0.0
    assert measured({"a": None, "b": 0, "c": 0.5}) == {"b": 0.0, "c": 0.5}


def test_largest_rewards_give_finite_metrics() -> None:
    rewards = [LARGEST, -LARGEST, LARGEST, LARGEST]
    extreme = make_group(make_attempt(rewards, by_function=[[r] for r in rewards], correct=[True] * 4))
    nothing = Collection(ready=(), exhausted=(), waiting=(), late=(), aged=(), failed=(), attempts=())
    with np.errstate(all="raise"):
        collection = replace(nothing, ready=(extreme,), attempts=(extreme,))
        metrics = sampling_metrics(1, collection, ["big"], 1, AlgorithmSettings(), exhausted_dropped=False)
    assert metrics.reward == pytest.approx(LARGEST / 2)
    assert metrics.rewards_mean == {"big": pytest.approx(LARGEST / 2)}
    assert metrics.frac_reward_zero_std == 0.0


def test_evaluation_without_runtime_is_refused_and_one_of_benchmarks_alone_is_not() -> None:
    with pytest.raises(ValueError, match="runtime is null"):
        EvaluationRecord.from_dict({**BEFORE.to_dict(), "runtime": None})
    assert EvaluationRecord.from_dict({**BEFORE.to_dict(), "accuracy": None}).accuracy is None


def test_evaluation_of_an_older_version_has_no_benchmarks_and_no_judges() -> None:
    values = {name: value for name, value in BEFORE.to_dict().items() if not name.startswith("benchmark_")}
    values = {name: value for name, value in values.items() if not name.startswith("judge_")}
    assert len(values) == 7
    assert EvaluationRecord.from_dict(values) == BEFORE


def test_skipped_updates_are_shown_everywhere(tmp_path: Path) -> None:
    record = replace(STEP, skipped_updates=2)
    summary = summarize([record, record, STEP], None, None, name="n", folder="f", adapter="a")
    assert summary.skipped_updates == 4
    assert "updates skipped 2" in step_metrics(record)
    assert not any("skipped" in part for part in step_metrics(STEP))
    assert any("updates skipped: 4" in str(part) for part in report(summary))
    assert not any(
        "skipped" in str(part) for part in report(summarize([STEP], None, None, name="n", folder="f", adapter="a"))
    )
    assert scalars(record)["adaptive/skipped_updates"] == 2
    assert [
        value.value for value in values_of(record) if value.metric.counter and value.metric.field == "skipped_updates"
    ] == [2]
    history = RunHistory("n", tmp_path, {}, (record, record, STEP), (), None, ())
    assert dict(comparison.results([history]))["updates skipped"] == "4"
    run = Run("n", "f", history, summary, ())
    assert dict(tables.summary([run]))["updates skipped"] == "4"
    (policy,) = curves([run], panels.POLICY)
    (panel,) = (axes for axes in policy.figure.axes if axes.get_title("left") == "adaptive/skipped_updates")
    assert [*panel.lines[0].get_ydata()] == [2, 2, 0]


@dataclass(frozen=True)
class Later(Record):
    """A record whose second field was added by a later version."""

    step: int
    novelty: float | None = None


def test_metric_added_later_is_none_in_older_runs() -> None:
    assert Later.from_dict({"step": 3}) == Later(3, None)
    assert Later.from_dict({"step": 3, "novelty": 0.5}).novelty == 0.5
    with pytest.raises(KeyError, match="step"):
        Later.from_dict({})


def test_unmeasured_metric_is_a_gap_in_its_curve(tmp_path: Path) -> None:
    losses = [0.5, None, 0.25, 0.125, None, 1.0]
    steps = tuple(step(number, loss=loss) for number, loss in enumerate(losses, 1))
    history = RunHistory("n", tmp_path, {}, steps, (), None, ())
    run = Run("n", "f", history, summarize(steps, None, None, name="n", folder="f", adapter="a"), ())
    (policy,) = curves([run], panels.POLICY)
    (panel,) = (axes for axes in policy.figure.axes if axes.get_title("left") == "loss")
    drawn = np.asarray(panel.lines[0].get_ydata(), dtype=float)
    assert [None if np.isnan(value) else value for value in drawn] == losses
    curve = Curve("n", "loss", 0, tuple((float(at), loss) for at, loss in enumerate(losses, 1)))
    page = plot.page(["n"], [Plot("p", (curve,))], "step")
    assert page.count("<polyline") == 3
    assert not re.search(r"\b(nan|None)\b", page)
