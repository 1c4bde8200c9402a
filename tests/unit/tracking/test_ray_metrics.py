"""The metrics of a run for Prometheus; test_submit.py tests on a cluster that Ray serves them."""

from __future__ import annotations

import math
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import yaml

from adagrpo_ray.cluster.placement import address
from adagrpo_ray.config import Config
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.rollout.gauges import RolloutGauges
from adagrpo_ray.runs.metric import metrics_of
from adagrpo_ray.runs.records import EvaluationRecord, RolloutLoad, StepRecord
from adagrpo_ray.tracking import check_trackers, grafana, ray_metrics
from adagrpo_ray.tracking.ray_metrics import MOST_LABELS, RayMetrics
from tests.support.gauges import given, watched
from tests.support.histories import EPISODES, JUDGED, ON_BENCHMARKS, STEP
from tests.support.scraped import DASHBOARD, METRICS, asked, panels


def test_gauges_show_the_values_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = {f"last_update_{name}": 0.5 for name in ("loss", "kl", "entropy", "grad_norm")}
    record = replace(STEP, kl=0.5, grad_norm=0.25, skipped_updates=1, **updates, **EPISODES)
    found = given(monkeypatch, record, replace(ON_BENCHMARKS, **JUDGED))
    never = {"groups_failed", "groups_dropped"}  # counters of 0
    wanted = {m.ray_name for kind in (StepRecord, EvaluationRecord) for m in metrics_of(kind) if m.field not in never}
    assert {name for name, *_ in found} == wanted
    assert found["adagrpo_reward",] == STEP.reward
    assert found["adagrpo_tokens_per_second",] == STEP.generated_tokens / STEP.step_time
    assert found["adagrpo_accuracy_by_difficulty", "5"] == STEP.accuracy_by_difficulty["5"]
    assert found["adagrpo_step_time_seconds",] == STEP.step_time
    assert found["adagrpo_eval_accuracy",] == ON_BENCHMARKS.accuracy
    assert found["adagrpo_eval_accuracy_by_difficulty", "2"] == ON_BENCHMARKS.accuracy_by_difficulty["2"]
    assert found["adagrpo_eval_benchmark_accuracy", "gsm8k"] == ON_BENCHMARKS.benchmark_accuracy["gsm8k"]


def test_gauges_show_the_load_of_a_rollout_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    made = watched(monkeypatch)
    RolloutGauges("one").show("rollout actor 0", RolloutLoad(outstanding_tokens=5, kv_cache_usage=0.5))
    labels = {"run": "one", "actor": "rollout actor 0"}
    assert made == {
        "adagrpo_rollout_outstanding_tokens": [(5.0, labels)],
        "adagrpo_rollout_kv_cache_usage": [(0.5, labels)],
    }


def test_counters_add_the_counts_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = given(monkeypatch, STEP)
    assert found["adagrpo_groups_ready",] == STEP.groups_ready
    assert (found["adagrpo_resamples", "0"], found["adagrpo_resamples", "1"]) == STEP.resamples
    assert found["adagrpo_generated_tokens",] == STEP.generated_tokens
    assert found["adagrpo_time_seconds", "sync"] == STEP.time["sync"]
    assert {metric.ray_name for metric in METRICS if metric.counter} >= {
        *("adagrpo_trained_tokens", "adagrpo_extra_tokens", "adagrpo_sync_bytes", "adagrpo_skipped_updates"),
        *("adagrpo_rescued", "adagrpo_groups_late", "adagrpo_groups_exhausted", "adagrpo_groups_dropped"),
    }


def test_nameless_and_too_many_difficulties_have_no_time_series(monkeypatch: pytest.MonkeyPatch) -> None:
    difficulties = {"": 1.0, **{f"difficulty {number}": 0.5 for number in range(1000)}}
    made = watched(monkeypatch)
    metrics = RayMetrics("run")
    metrics.step(replace(STEP, accuracy_by_difficulty=difficulties))
    metrics.step(replace(STEP, accuracy_by_difficulty={f"other {number}": 0.5 for number in range(1000)}))
    metrics.step(replace(STEP, accuracy_by_difficulty={"difficulty 7": 0.75}))
    metrics.close()
    shown = {tags["difficulty"]: value for value, tags in made["adagrpo_accuracy_by_difficulty"]}
    assert shown.keys() == {f"difficulty {number}" for number in range(MOST_LABELS)}
    assert shown["difficulty 7"] == 0.75


def test_metric_not_measured_in_the_newest_step_ends_its_series(monkeypatch: pytest.MonkeyPatch) -> None:
    made = watched(monkeypatch)
    monkeypatch.setattr(ray_metrics, "REFRESH_S", 0.01)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    metrics = RayMetrics("run")
    metrics.step(replace(STEP, kl=0.5, accuracy_by_difficulty={"easy": 1.0, "hard": 0.0}))
    metrics.step(replace(STEP, kl=None, accuracy_by_difficulty={"easy": 0.5}))
    while len(made.get("adagrpo_loss", ())) < 5:  # the second step, refreshed
        assert metrics._thread.is_alive()
    metrics.close()
    *before, last = [value for value, _ in made["adagrpo_kl"]]
    assert set(before) == {0.5}
    assert math.isnan(last)  # Ray would show 0.5 for twenty seconds more
    assert len(made["adagrpo_kl"]) < len(made["adagrpo_loss"])
    hard = [value for value, tags in made["adagrpo_accuracy_by_difficulty"] if tags["difficulty"] == "hard"]
    assert set(hard[:-1]) == {0.0}
    assert math.isnan(hard[-1])
    assert [tags["difficulty"] for _, tags in made["adagrpo_accuracy_by_difficulty"]][-1:] == ["easy"]


def test_texts_of_users_are_escaped_for_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    made = watched(monkeypatch)
    notices: list[str] = []
    metrics = RayMetrics("läufe", notices.append)
    metrics.step(replace(STEP, accuracy_by_difficulty={"facile é": 0.5, "a\n": 1.0}, rewards_mean={"m:prüfe": 0.25}))
    metrics.close()
    assert made["adagrpo_accuracy_by_difficulty"] == [
        (0.5, {"run": "l%C3%A4ufe", "difficulty": "facile %C3%A9"}),
        (1.0, {"run": "l%C3%A4ufe", "difficulty": "a%0A"}),
    ]
    assert [tags["function"] for _, tags in made["adagrpo_rewards_mean"]] == ["m:pr%C3%BCfe"]
    assert notices == []


@pytest.mark.parametrize("error", [ValueError("no such\nthing"), SystemExit(3), KeyboardInterrupt()])
def test_error_of_ray_disables_the_metrics_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    notices: list[str] = []
    monkeypatch.setattr(ray_metrics, "Gauge", fail)
    metrics = RayMetrics("run", notices.append)
    for number in range(1, 4):
        metrics.step(replace(STEP, step=number))
    metrics.close()
    (line,) = notices
    assert line.startswith("warning: metrics for Prometheus are disabled, the run continues without them: ")
    assert "\n" not in line


def test_dashboard_file_is_up_to_date() -> None:
    assert DASHBOARD.read_text() == grafana.as_json(), "make dashboard writes it"


def test_dashboard_queries_all_metrics_with_a_panel() -> None:
    drawn = {metric.prometheus for metric in METRICS if metric.panel is not None}
    assert asked() == drawn | {"ray_adagrpo_step", "ray_adagrpo_rollout_actors"}


def test_panels_filter_by_run_and_rates_are_of_counters_only() -> None:
    for panel in panels():
        for target in panel["targets"]:
            assert '{run=~"$run"}' in target["expr"]
            for name in re.findall(r"\bray_\w+", target["expr"]):
                assert name.endswith("_total") == ("rate(" in target["expr"])
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels()]
    assert len(set(places)) == len(places)


def test_prometheus_reads_the_discovery_file_of_ray() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (scrape,) = yaml.safe_load(Path("cluster/prometheus.yml").read_text())["scrape_configs"]
    assert scrape["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]


def test_port_in_use_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        config = Config.load(None, [f"tracking.prometheus_port={port}"])
        with pytest.raises(ConfigError, match=f"tracking.prometheus_port={port} cannot be used"):
            check_trackers(config.tracking, address(config.run))
    check_trackers(config.tracking, address(config.run))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=f"this run joins the one at 10.0.0.1:6379.*--metrics-export-port={port}"):
        check_trackers(config.tracking, address(config.run))
