"""Scrapes the metrics of a run that Ray serves to Prometheus, during the run and shortly after it."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adagrpo_ray.runs.metric import Value, metrics_of, values_of
from adagrpo_ray.runs.reader import load
from adagrpo_ray.runs.records import RECORDS

DASHBOARD = Path("cluster/grafana/adagrpo.json")
Series = tuple[str, str, str]  # name, run, value of its label

METRICS = tuple(metric for record in RECORDS for metric in metrics_of(record))
LABELS = {metric.label for metric in METRICS if metric.label is not None}


class Scraper:
    """Reads the port repeatedly, and stores the newest value of each of our time series in `seen`."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self.seen: dict[Series, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._scrape()

    def _read(self) -> None:
        while not self._stop.wait(0.3):
            with suppress(OSError):  # the server may start later
                self._scrape()

    def _scrape(self) -> None:
        with urllib.request.urlopen(self._url, timeout=60) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_adagrpo_"):
                    of = next((sample.labels[key] for key in LABELS & set(sample.labels)), "")
                    self.seen[sample.name, sample.labels["run"], of] = sample.value


def check_metrics(seen: dict[Series, float], folder: Path) -> None:
    """Check that the served values are those of the run folder, and that the dashboard queries no other metrics."""
    run = load(folder)

    def series(value: Value) -> Series:
        return value.metric.prometheus, folder.name, value.of

    newest = [run.steps[-1], *run.evaluations[-1:]]
    values = [value for record in newest for value in values_of(record) if value.value is not None]
    expected = {series(value): float(value.value or 0.0) for value in values if not value.metric.counter}
    counts: defaultdict[Series, float] = defaultdict(float)
    for step in run.steps:
        for value in values_of(step):
            if value.metric.counter:
                counts[series(value)] += value.value or 0.0
    expected |= {key: value for key, value in counts.items() if value}
    assert len(expected) > 40
    assert {key: seen.get(key) for key in expected} == pytest.approx(expected, rel=1e-9)
    actors = {of for name, of_run, of in seen if name.startswith("ray_adagrpo_rollout_") and of}
    assert actors == {"rollout actor 0"}
    served, expected_names = {name for name, _, _ in seen}, {name for name, _, _ in expected}
    never = {metric.prometheus for metric in METRICS if metric.counter} - expected_names
    of_evaluations = {name for name in asked() if name.startswith("ray_adagrpo_eval_")} - expected_names
    unmeasured = {"ray_adagrpo_kl", "ray_adagrpo_completions_mean_terminated_length"} - expected_names
    unmeasured |= {metric.prometheus for metric in METRICS if metric.name.startswith("episodes/")} - expected_names
    missing = asked() - served - never - unmeasured - of_evaluations
    assert not missing, missing


def asked() -> set[str]:
    """The metrics in the dashboard's expressions."""
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [v["definition"] for v in dashboard["templating"]["list"] if "definition" in v]
    return set(re.findall(r"\bray_\w+", " ".join(expressions + variables)))


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found
