"""The registry of metrics: its declarations are correct, and a new metric is shown everywhere."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adagrpo_ray.algorithm.update_statistics import UpdateStatistics
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.reports import Run
from adagrpo_ray.reports.charts import charts
from adagrpo_ray.runs import RunWriter, panels, summarize, units
from adagrpo_ray.runs.metric import Metric, metrics_of, scalars, unit_of
from adagrpo_ray.runs.metric_table import as_markdown, table
from adagrpo_ray.runs.panels import PANELS
from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.records import RECORDS, EvaluationRecord, RolloutLoad, StepRecord
from adagrpo_ray.runs.sampling_metrics import SamplingMetrics
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.metrics import sampling_metrics
from adagrpo_ray.tracking import grafana
from adagrpo_ray.types import Group
from adagrpo_ray.viewer.run_curves import plots
from tests.support.builders import make_attempt, make_group, statistics_of
from tests.support.gauges import given
from tests.support.histories import STEP

METRICS = {metric.name: metric for record in RECORDS for metric in metrics_of(record)}
DATA = {(StepRecord, "reliability"), (EvaluationRecord, "step")}
"""Fields without a metric, which trackers do not get."""


# --- the declarations


def test_each_field_of_a_record_declares_one_metric_or_is_data() -> None:
    declared = [metric for record in RECORDS for metric in metrics_of(record)]
    assert len(METRICS) == len(declared) == len({metric.prometheus for metric in declared}) > 60
    for record in RECORDS:
        named = [field.name for field in fields(record) if (record, field.name) not in DATA]
        assert sorted(metric.field for metric in metrics_of(record)) == sorted(named)


def test_field_has_the_name_of_its_metric() -> None:
    for record, prefix in ((StepRecord, ""), (EvaluationRecord, "eval_"), (RolloutLoad, "rollout_")):
        for metric in metrics_of(record):
            assert metric.identifier == f"{prefix}{metric.field}"
            assert re.fullmatch(r"ray_adagrpo_[a-z_]+", metric.prometheus)


def test_metrics_of_most_panels_share_a_unit() -> None:
    assert {metric.panel for metric in METRICS.values() if metric.panel is not None} == set(PANELS)
    shared = {p: unit_of(metric for metric in METRICS.values() if metric.panel is p) for p in PANELS}
    assert {p for p, unit in shared.items() if unit is None} == {
        *(panels.OFF_POLICY, panels.POLICY, panels.COMPLETIONS, panels.EPISODES),
    }
    assert shared[panels.ACCURACY] == shared[panels.ZERO_STD] == units.SHARE


def test_names_without_our_prefixes_are_those_of_trl_and_transformers() -> None:
    """Their sources are searched for the names, because importing them takes seconds."""
    known = {"accuracy", "step"}
    for package, file in (("trl", "trainer/grpo_trainer.py"), ("transformers", "trainer.py")):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        text = (Path(spec.origin).parent / file).read_text()
        known |= {name.replace("reward_func_name", "function") for name in re.findall(r'f?"([\w/{}]+)"', text)}
    theirs = {name for name in METRICS if not re.match(r"(adaptive|time|eval|rollout|episodes|tools)/", name)}
    extended = {  # a family of their names, by difficulty or with one more member
        *("accuracy_by_difficulty/{difficulty}", "entropy_by_difficulty/{difficulty}"),
        *("frac_reward_zero_std_by_difficulty/{difficulty}", "rewards/{function}/frac_zero_std"),
        *(f"sampling/importance_sampling_ratio/frac_{part}" for part in ("truncated", "masked")),
    }
    assert theirs - extended <= known, theirs - extended - known
    assert {"reward", "rewards/{function}/std", "kl", "grad_norm", "step_time"} <= theirs


def test_page_of_metrics_lists_every_metric() -> None:
    page = as_markdown()
    for metric in METRICS.values():
        assert f"\n| `{metric.name}` | `{metric.field}` | `{metric.prometheus}` | {metric.unit.name} | " in page
    assert page.count("\n| `") == len(METRICS)


# --- how values of ranks and micro-batches combine


def merged(metric: Metric, values: tuple[Any, Any], weights: tuple[int, int]) -> object:
    """The two values combined as the metric declares; `weights` are numbers of tokens, completions or groups."""
    a, b = values
    if a is None or b is None:
        return b if a is None else a
    match metric.combine:
        case "sum":
            return pytest.approx(a + b)
        case "min":
            return min(a, b)
        case "max":
            return max(a, b)
    assert metric.combine.startswith("mean over")
    return pytest.approx((weights[0] * a + weights[1] * b) / sum(weights))


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_micro_batches_combine_as_declared(seed: int) -> None:
    draw = random.Random(seed)
    parts = [statistics_of([draw.uniform(0.5, 3.0) for _ in range(n)], [""] * n) for n in (2, 5)]
    first, second = (part.metrics() for part in parts)
    whole = parts[0].merged(parts[1]).metrics()
    declared = {metric.field: metric for metric in metrics_of(StepRecord)}
    assert whole.keys() <= declared.keys()
    compared = [name for name, value in whole.items() if not isinstance(value, Mapping)]
    assert len(compared) == len(UpdateStatistics().metrics()) - 1
    for name in compared:
        assert whole[name] == merged(declared[name], (first[name], second[name]), (2, 5)), name


def test_metrics_of_groups_combine_as_declared() -> None:
    draw = random.Random(0)

    def drawn() -> Group:
        rewards = [draw.choice([0.0, 0.5, 2.0]) for _ in range(4)]
        lengths = [draw.randrange(1, 9) for _ in rewards]
        return make_group(make_attempt(rewards, lengths=lengths, by_function=[[r, 1 - r] for r in rewards]))

    def of(*groups: Group) -> dict[str, Any]:
        collection = Collection(groups, (), (), (), (), (), groups)
        return asdict(sampling_metrics(1, collection, ["one", "two"], 1, AlgorithmSettings(), exhausted_dropped=False))

    groups = [drawn() for _ in range(8)]
    first, second, whole = of(*groups[:2]), of(*groups[2:]), of(*groups)
    for metric in metrics_of(SamplingMetrics):
        values = [part[metric.field] for part in (first, second, whole)]
        if metric.combine == "last":
            assert metric.field == "groups_waiting"
        elif metric.combine == "std over completions":
            by_function = np.concatenate([group.last.rewards_by_function for group in groups])
            rewards = np.concatenate([group.last.rewards for group in groups])
            expected = {"rewards_std": dict(zip(("one", "two"), by_function.std(0, ddof=1), strict=True))}
            assert values[2] == pytest.approx(expected.get(metric.field, rewards.std(ddof=1)), rel=1e-6)
        elif isinstance(values[2], Mapping):
            for key, value in values[2].items():
                assert value == merged(metric, (values[0].get(key), values[1].get(key)), (2, 6)), metric.name
        elif isinstance(values[2], tuple):
            assert values[2] == tuple(a + b for a, b in zip(values[0], values[1], strict=True))
        else:
            assert values[2] == merged(metric, (values[0], values[1]), (2, 6)), metric.name


# --- a new metric


@dataclass(frozen=True, kw_only=True)
class NewStep(StepRecord):
    """A step with one more metric, which only its declaration mentions."""

    # fmt: off
    novelty: Annotated[float | None, Metric("adaptive/novelty", units.SHARE, "mean over groups",
        "share of answers that no earlier step had", panels.ZERO_STD)] = None
    # fmt: on


NEW = NewStep(**{field.name: getattr(STEP, field.name) for field in fields(StepRecord)}, novelty=0.25)


def test_new_metric_is_in_run_folder_and_tensorboard(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", "") as writer:
        writer.step(NEW)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert NewStep.from_dict(line) == NEW
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert events.Scalars("adaptive/novelty")[0].value == 0.25


def test_new_metric_is_in_wandb_and_mlflow() -> None:
    """`relay` passes them the `scalars` of each record, and nothing else."""
    assert scalars(NEW) == {**scalars(STEP), "adaptive/novelty": 0.25}


def test_new_metric_is_in_prometheus_and_the_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert given(monkeypatch, NEW)["adagrpo_novelty",] == 0.25
    made = grafana.dashboard((NewStep, EvaluationRecord, RolloutLoad))["panels"]
    (panel,) = (panel for panel in made if panel["title"] == panels.ZERO_STD.title)
    assert [target["expr"] for target in panel["targets"]][-1] == 'ray_adagrpo_novelty{run=~"$run"}'


def test_new_metric_is_in_plots_and_report(tmp_path: Path) -> None:
    steps = (NEW, replace(NEW, step=2, novelty=0.5))
    history = RunHistory("n", tmp_path, {}, steps, (), None, ())
    lines = {curve.line: curve.points for plot in plots([history], "step") for curve in plot.curves}
    assert lines["adaptive/novelty"] == ((1.0, 0.25), (2.0, 0.5))
    run = Run("n", "f", history, summarize(steps, None, None, name="n", folder="f", adapter="a"), ())
    chart = next(chart for chart in charts([run], 1) if chart.name == "zero-std")
    assert "adaptive/novelty" in [text.get_text() for text in chart.figure.legends[0].get_texts()]
    assert [*chart.figure.axes[0].lines[-1].get_ydata()] == [0.25, 0.5]


def test_new_metric_is_in_the_documentation() -> None:
    line = "| `adaptive/novelty` | `novelty` | `ray_adagrpo_novelty` | share | mean over groups | share of answers "
    assert f"{line}that no earlier step had |\n" in table(metrics_of(NewStep))


def test_older_run_is_read_without_the_new_metric() -> None:
    assert NewStep.from_dict(STEP.to_dict()).novelty is None
