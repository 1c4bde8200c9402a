"""Makes the Grafana dashboard of a run, cluster/grafana/adagrpo.json, from the registry of metrics.

`make dashboard` writes the file. A test checks that it is up to date.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from adagrpo_ray.runs.metric import Metric, metrics_of
from adagrpo_ray.runs.panels import PANELS, PHASES, Panel
from adagrpo_ray.runs.record import Record
from adagrpo_ray.runs.records import RECORDS

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
NUMBERS = ("step", "eval/accuracy", "adaptive/tokens_per_second", "adaptive/rollout_actors")
"""Metrics in the first row, shown as numbers."""
STACKED = (PHASES,)
"""Panels with stacked curves."""


def dashboard(records: Sequence[type[Record]]) -> dict[str, Any]:
    """The dashboard in Grafana's import format: a row of numbers, then every panel that has a metric."""
    metrics = [metric for record in records for metric in metrics_of(record)]
    by_name = {metric.name: metric for metric in metrics}
    panels = [_number(by_name[name], place) for place, name in enumerate(NUMBERS)]
    drawn = [(panel, own) for panel in PANELS if (own := [m for m in metrics if m.panel is panel])]
    panels += [_curves(panel, own, place) for place, (panel, own) in enumerate(drawn)]
    return {
        "title": "adagrpo_ray",
        "uid": "adagrpo-ray",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["ray"],
        "templating": {"list": [_source(), _runs(by_name["step"])]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def as_json() -> str:
    """The content of the dashboard's file."""
    return json.dumps(dashboard(RECORDS), indent=1) + "\n"


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _runs(metric: Metric) -> dict[str, Any]:
    """The variable that selects runs."""
    query = f"label_values({metric.prometheus}, run)"
    return {
        "name": "run",
        "label": "run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "run"},
        "definition": query,
        "multi": True,
        "includeAll": True,
        "refresh": 2,
        "sort": 1,
        "current": {"text": "All", "value": "$__all"},
    }


def _number(metric: Metric, place: int) -> dict[str, Any]:
    position = {"x": 6 * place, "y": 0, "w": 6, "h": 4}
    return _panel("stat", metric.name, metric.description, position, {"unit": metric.unit.grafana}, [metric])


def _curves(panel: Panel, metrics: Sequence[Metric], place: int) -> dict[str, Any]:
    """A panel of curves over time; there are two panels in a row."""
    position = {"x": 12 * (place % 2), "y": 4 + 8 * (place // 2), "w": 12, "h": 8}
    units = {metric.unit.rate if metric.counter else metric.unit.grafana for metric in metrics}
    defaults: dict[str, Any] = {"unit": units.pop() if len(units) == 1 else "short"}
    if panel in STACKED:
        defaults["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 40}
    return _panel("timeseries", panel.title, panel.caption, position, defaults, metrics)


def _panel(
    kind: str, title: str, text: str, position: dict[str, int], defaults: dict[str, Any], metrics: Iterable[Metric]
) -> dict[str, Any]:
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [_target(metric, place) for place, metric in enumerate(metrics)],
    }


def _target(metric: Metric, place: int) -> dict[str, Any]:
    """The query of a metric: the value of a gauge, or the rate of a counter."""
    labels = "run" if metric.label is None else f"run, {metric.label}"
    query, legend = f'{metric.prometheus}{{run=~"$run"}}', metric.name
    if metric.counter:
        query, legend = f"sum by ({labels}) (rate({query}[$__rate_interval]))", f"{legend} per second"
    if metric.label is not None:
        legend = legend.replace(f"{{{metric.label}}}", f"{{{{{metric.label}}}}}")
    return {
        "refId": chr(ord("A") + place),
        "datasource": SOURCE,
        "expr": query,
        "legendFormat": f"{{{{run}}}} {legend}",
    }
