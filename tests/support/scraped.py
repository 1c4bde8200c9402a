"""What Ray serves to Prometheus of a run, read while it goes on and shortly after."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adagrpo_ray.rollout import gauges as rollout
from adagrpo_ray.runs.reader import load
from adagrpo_ray.tracking.ray_metrics import COUNTERS, GAUGES, LABELS, Figure, step_counts, step_gauges

DASHBOARD = Path("cluster/grafana/adagrpo.json")
Series = tuple[str, str, str]  # name, run, and the value of its own label

NAMES = {
    *(f"ray_adagrpo_{name}" for name in GAUGES),
    *(f"ray_adagrpo_{name}_total" for name in COUNTERS),
    *(f"ray_adagrpo_rollout_{name}" for name in rollout.GAUGES),
}


class Scraper:
    """Reads the port again and again, and keeps the newest value of each of our time series."""

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
            with suppress(OSError):  # who serves it may begin later than this
                self._scrape()

    def _scrape(self) -> None:
        with urllib.request.urlopen(self._url, timeout=60) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_adagrpo_"):
                    of = next((sample.labels[key] for key in {*LABELS.values(), "actor"} & set(sample.labels)), "")
                    self.seen[sample.name, sample.labels["run"], of] = sample.value


def check_figures(seen: dict[Series, float], folder: Path) -> None:
    """All that was served is what stands in the run folder, and the dashboard asks for nothing else."""
    run = load(folder)
    expected: dict[Series, float] = {}

    def series(figure: Figure, name: str) -> Series:
        return (name, folder.name, figure.of)

    for figure in step_gauges(run.steps[-1]):
        if figure.value == figure.value:  # nan was not measured
            expected[series(figure, f"ray_adagrpo_{figure.name}")] = figure.value
    counts: Counter[Series] = Counter()
    for step in run.steps:
        for figure in step_counts(step):
            counts[series(figure, f"ray_adagrpo_{figure.name}_total")] += figure.value
    expected |= {key: value for key, value in counts.items() if value}
    if run.evaluations:
        expected["ray_adagrpo_held_out_accuracy", folder.name, ""] = run.evaluations[-1].accuracy
    assert {key: seen.get(key) for key in expected} == pytest.approx(expected, rel=1e-9)
    actors = {of for name, of_run, of in seen if name.startswith("ray_adagrpo_rollout_") and of}
    assert actors == {"rollout actor 0"}
    never = {f"ray_adagrpo_{name}_total" for name in COUNTERS} - {name for name, _, _ in expected}
    unmeasured = {"ray_adagrpo_kl", "ray_adagrpo_held_out_accuracy"} - {name for name, _, _ in expected}
    assert asked() - {name for name, _, _ in seen} <= never | unmeasured


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
