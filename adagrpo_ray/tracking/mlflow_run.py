"""A run in MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from adagrpo_ray.config.explain import as_yaml
from adagrpo_ray.config.fixed import flat
from adagrpo_ray.runs.group_codec import well_formed
from adagrpo_ray.runs.names import MLFLOW, name_of, text_of
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.storage import places as storage
from adagrpo_ray.tracking.sample_tables import COLUMNS, rows
from adagrpo_ray.tracking.tracker import State, TrackedRun

EXPERIMENT = "adagrpo_ray"
"""Where MLFLOW_EXPERIMENT_NAME is not set."""

MOST_PARAMS, MOST_METRICS, MOST_CHARACTERS = 100, 1000, 6000
"""Of one request, and of one parameter's value."""

STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class MlflowRun:
    """A run on the MLflow server at `place`, or in the folder of that name. Credentials are MLflow's own variables."""

    title = "MLflow"

    def __init__(self, place: str) -> None:
        self._uri = place if is_uri(place) else Path(place).resolve().as_uri()
        self._client: Any = None
        self._id = ""
        self._resumed = False
        self._held: dict[str, int] = {}  # the newest step of a curve that it has from an earlier program

    @staticmethod
    def load() -> None:
        """Import the package; ImportError where it is not there."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import
        import_module("mlflow")

    def open(self, run: TrackedRun) -> tuple[str, Mapping[str, str]]:
        """Begin a run, or go on with the one that `run.note` names."""
        if self._uri.startswith("file:"):  # else MLflow asks for a database, for which its small package has no driver
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        self._client = client = MlflowClient(self._uri)
        before = run.note if run.note is not None and run.note.get("uri") == self._uri else None
        if before is not None:
            self._id, self._resumed = before["id"], True
            client.update_run(self._id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            found = client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else client.create_experiment(name)
            self._id = client.create_run(experiment, run_name=run.name).info.run_id
        for tag in run.config.tracking.tags:
            client.set_tag(self._id, name_of(tag, MLFLOW), "true")
        self._params(flat(run.config.model_dump(mode="json")))
        client.log_text(self._id, as_yaml(run.config), "config.yaml")
        return f"run {self._id} at {self._uri}", {"id": self._id, "uri": self._uri}

    def has(self, tag: str, step: int) -> bool:
        """Whether it has a point of that curve at the step or later: MLflow would keep both."""
        if not self._resumed:
            return False
        if tag not in self._held:
            history = self._client.get_metric_history(self._id, tag)
            self._held[tag] = max((point.step for point in history), default=-1)
        return step <= self._held[tag]

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(metric_name(tag), value, now, step) for tag, value in values.items()]
        for start in range(0, len(points), MOST_METRICS):
            self._client.log_batch(self._id, metrics=points[start : start + MOST_METRICS])

    def samples(self, groups: Sequence[GroupSample], step: int) -> None:
        """Keep them as a table, an artifact of its own for each step."""
        columns = zip(*rows(groups), strict=True)
        table = {name: list(values) for name, values in zip(COLUMNS, columns, strict=True)}
        self._client.log_table(self._id, table, f"samples/step-{step:06}.json")

    def summary(self, summary: Summary, adapter: str | None) -> None:
        """Keep the summary and the adapter as artifacts."""
        self._client.log_dict(self._id, summary.to_dict(), "summary.json")
        if adapter is None:
            return
        with storage.scratch() if storage.is_url(adapter) else nullcontext(Path(adapter)) as folder:
            if storage.is_url(adapter):
                storage.pull(adapter, folder, sorted(storage.files(adapter)))
            self._client.log_artifacts(self._id, str(folder), "adapter")

    def close(self, state: State) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, STATUS[state])

    def abandon(self) -> None:
        """Nothing: all of it is in the calling thread, which ends with the program."""

    def _params(self, settings: Iterable[tuple[str, Any]]) -> None:
        """Every setting that the run does not have yet: MLflow lets none change, config.yaml has the newest."""
        from mlflow.entities import Param

        there = self._client.get_run(self._id).data.params if self._resumed else {}
        named = ((name_of(key, MLFLOW), well_formed(str(value))) for key, value in settings)
        new = [Param(key, value[:MOST_CHARACTERS]) for key, value in named if key not in there]
        for start in range(0, len(new), MOST_PARAMS):
            self._client.log_batch(self._id, params=new[start : start + MOST_PARAMS])


def is_uri(place: str) -> bool:
    """Whether `place` is a URI as MLflow takes it, and no folder."""
    return "://" in place or place == "databricks"


def metric_name(tag: str) -> str:
    """A TensorBoard `tag` as MLflow takes it: parts of it may be text of the user's, each by its name there."""
    return "/".join(name_of(text_of(part), MLFLOW) for part in tag.split("/"))
