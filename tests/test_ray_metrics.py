"""What a run shows to Prometheus; that Ray serves it is in test_submit.py, on a cluster."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from adagrpo_ray.config import load_config
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.tracking import check_trackers
from adagrpo_ray.tracking.ray_metrics import COUNTERS, GAUGES, LABELS, MOST_LABELS, step_counts, step_gauges
from tests.histories import STEP
from tests.scraped import NAMES, asked, panels


def test_every_gauge_of_a_step_is_shown_as_it_was_measured() -> None:
    shown = {(figure.name, figure.of): figure.value for figure in step_gauges(replace(STEP, kl=0.5, grad_norm=0.25))}
    assert {name for name, _ in shown} == set(GAUGES) - {"held_out_accuracy"}
    assert shown["reward_mean", ""] == STEP.reward_mean
    assert shown["tokens_per_second", ""] == STEP.generated_tokens / STEP.seconds
    assert shown["accuracy_by_level", "5"] == STEP.accuracy_by_level["5"]
    assert shown["phase_seconds", "sync"] == STEP.seconds_by_phase["sync"]


def test_every_counter_counts_what_a_step_did() -> None:
    counted = {(figure.name, figure.of): figure.value for figure in step_counts(STEP)}
    assert {name for name, _ in counted} == set(COUNTERS)
    assert counted["groups", "ready"] == STEP.groups_ready
    assert (counted["resamples", "0"], counted["resamples", "1"]) == STEP.resamples
    assert counted["generated_tokens", ""] == STEP.generated_tokens


def test_a_level_without_a_name_and_levels_without_end_make_no_time_series() -> None:
    levels = {"": 1.0, **{f"level {number}": 0.5 for number in range(1000)}}
    shown = [f for f in step_gauges(replace(STEP, accuracy_by_level=levels)) if f.name == "accuracy_by_level"]
    assert len(shown) == MOST_LABELS
    assert all(figure.of and figure.label == LABELS["accuracy_by_level"] for figure in shown)


def test_a_step_that_took_no_time_has_no_pace() -> None:
    assert "tokens_per_second" not in {figure.name for figure in step_gauges(replace(STEP, seconds=0.0))}


def test_the_dashboard_asks_for_metrics_that_a_run_has_and_leaves_none_out() -> None:
    unasked = {f"ray_adagrpo_{name}" for name in ("learning_rate", "completion_length", "rollout_restarts")}
    assert asked() == NAMES - unasked - {"ray_adagrpo_weight_version"}


def test_each_panel_filters_by_run_and_rates_are_of_counters_alone() -> None:
    for panel in panels():
        for target in panel["targets"]:
            assert '{run=~"$run"}' in target["expr"]
            for name in re.findall(r"\bray_\w+", target["expr"]):
                assert name.endswith("_total") == ("rate(" in target["expr"])
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels()]
    assert len(set(places)) == len(places)


def test_prometheus_reads_the_file_that_ray_keeps() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (scrape,) = yaml.safe_load(Path("cluster/prometheus.yml").read_text())["scrape_configs"]
    assert scrape["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]


def test_a_port_that_is_taken_is_said_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        config = load_config(None, [f"tracking.prometheus_port={port}"])
        with pytest.raises(ConfigError, match=f"tracking.prometheus_port={port} cannot be used"):
            check_trackers(config)
    check_trackers(config)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=f"this run joins the one at 10.0.0.1:6379.*--metrics-export-port={port}"):
        check_trackers(config)
