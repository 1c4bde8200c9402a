"""What a run shows to Prometheus; that Ray serves it is in test_submit.py, on a cluster."""

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
from adagrpo_ray.config import load_config
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.tracking import check_trackers, ray_metrics
from adagrpo_ray.tracking.ray_metrics import COUNTERS, GAUGES, MOST_LABELS, RayMetrics, step_counts, step_gauges
from tests.support.histories import STEP
from tests.support.scraped import NAMES, asked, panels


def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[float, dict[str, str]]]]:
    """What is set or counted from here on, by metric. Ray's metrics raise on tags that are not ASCII, as they do."""
    made: dict[str, list[tuple[float, dict[str, str]]]] = {}

    class Watched:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self._seen = made.setdefault(name, [])

        def set(self, value: float, tags: dict[str, str]) -> None:
            for tag in tags.values():
                tag.encode("ascii")
            self._seen.append((value, tags))

        inc = set

    monkeypatch.setattr(ray_metrics, "Gauge", Watched)
    monkeypatch.setattr(ray_metrics, "Counter", Watched)
    return made


def test_every_gauge_of_a_step_is_shown_as_it_was_measured() -> None:
    shown = {(figure.name, figure.of): figure.value for figure in step_gauges(replace(STEP, kl=0.5, grad_norm=0.25))}
    assert {name for name, _ in shown} == set(GAUGES) - {"held_out_accuracy"}
    assert shown["reward_mean", ""] == STEP.reward_mean
    assert shown["tokens_per_second", ""] == STEP.generated_tokens / STEP.seconds
    assert shown["accuracy_by_difficulty", "5"] == STEP.accuracy_by_difficulty["5"]
    assert shown["phase_seconds", "sync"] == STEP.seconds_by_phase["sync"]


def test_every_counter_counts_what_a_step_did() -> None:
    counted = {(figure.name, figure.of): figure.value for figure in step_counts(STEP)}
    assert {name for name, _ in counted} == set(COUNTERS)
    assert counted["groups", "ready"] == STEP.groups_ready
    assert (counted["resamples", "0"], counted["resamples", "1"]) == STEP.resamples
    assert counted["generated_tokens", ""] == STEP.generated_tokens


def test_a_level_without_a_name_and_levels_without_end_make_no_time_series(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_step_that_took_no_time_has_no_pace() -> None:
    assert "tokens_per_second" not in {figure.name for figure in step_gauges(replace(STEP, seconds=0.0))}


def test_what_the_newest_step_did_not_measure_is_not_shown_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_texts_of_users_are_labels_that_ray_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = watched(monkeypatch)
    said: list[str] = []
    metrics = RayMetrics("läufe", said.append)
    metrics.step(
        replace(STEP, accuracy_by_difficulty={"facile é": 0.5, "a\n": 1.0}, reward_by_function={"m:prüfe": 0.25})
    )
    metrics.close()
    assert made["adagrpo_accuracy_by_difficulty"] == [
        (0.5, {"run": "l%C3%A4ufe", "difficulty": "facile %C3%A9"}),
        (1.0, {"run": "l%C3%A4ufe", "difficulty": "a%0A"}),
    ]
    assert [tags["function"] for _, tags in made["adagrpo_reward"]] == ["m:pr%C3%BCfe"]
    assert said == []


@pytest.mark.parametrize("error", [ValueError("no such\nthing"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_ray_raises_costs_the_metrics_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    said: list[str] = []
    monkeypatch.setattr(ray_metrics, "Gauge", fail)
    metrics = RayMetrics("run", said.append)
    for number in range(1, 4):
        metrics.step(replace(STEP, step=number))
    metrics.close()
    (line,) = said
    assert line.startswith("warning: metrics for Prometheus are let go, the run continues without them: ")
    assert "\n" not in line


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
            check_trackers(config.tracking, address(config.run))
    check_trackers(config.tracking, address(config.run))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=f"this run joins the one at 10.0.0.1:6379.*--metrics-export-port={port}"):
        check_trackers(config.tracking, address(config.run))
