"""Records a run in MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from adagrpo_ray.config.listing import as_yaml, flat
from adagrpo_ray.runs.group_codec import well_formed
from adagrpo_ray.runs.names import MLFLOW, name_of, text_of
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.storage import places as storage
from adagrpo_ray.tracking.sample_tables import COLUMNS, rows
from adagrpo_ray.tracking.tracker import State, TrackedRun

EXPERIMENT = "adagrpo_ray"
"""The experiment, unless MLFLOW_EXPERIMENT_NAME is set."""

MOST_PARAMS, MOST_METRICS, MOST_CHARACTERS = 100, 1000, 6000
"""Limits of one request, and of the value of one parameter."""

STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class MlflowRun:
    """A run on the MLflow server at `place`, or in the folder `place`.

    Credentials come from MLflow's environment variables.
    """

    title = "MLflow"

    def __init__(self, place: str) -> None:
        self._uri = place if is_uri(place) else Path(place).resolve().as_uri()
        self._client: Any = None
        self._id = ""
        self._resumed = False
        self._newest: dict[str, int] = {}  # tag -> the newest step that an earlier program logged

    @staticmethod
    def load() -> None:
        """Import the package. Raises ImportError if it is not installed."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read during the import
        import_module("mlflow")

    def open(self, run: TrackedRun) -> tuple[str, Mapping[str, str]]:
        """Begin a run, or continue the one that `run.note` names."""
        # Without it MLflow requires a database, and mlflow-skinny has no driver for one.
        if self._uri.startswith("file:"):
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
        """Whether the curve has a point at the step or later. MLflow would keep a second point of a step."""
        if not self._resumed:
            return False
        if tag not in self._newest:
            history = self._client.get_metric_history(self._id, tag)
            self._newest[tag] = max((point.step for point in history), default=-1)
        return step <= self._newest[tag]

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(metric_name(tag), value, now, step) for tag, value in values.items()]
        for start in range(0, len(points), MOST_METRICS):
            self._client.log_batch(self._id, metrics=points[start : start + MOST_METRICS])

    def samples(self, groups: Sequence[GroupSample], step: int) -> None:
        """Log the groups as a table, which is one artifact for each step."""
        columns = zip(*rows(groups), strict=True)
        table = {name: list(values) for name, values in zip(COLUMNS, columns, strict=True)}
        self._client.log_table(self._id, table, f"samples/step-{step:06}.json")

    def summary(self, summary: Summary, adapter: str | None) -> None:
        """Log the summary and the adapter as artifacts."""
        self._client.log_dict(self._id, summary.to_dict(), "summary.json")
        if adapter is None:
            return
        with storage.scratch() if storage.is_url(adapter) else nullcontext(Path(adapter)) as folder:
            if storage.is_url(adapter):
                storage.pull(adapter, folder, sorted(storage.files(adapter)))
            self._client.log_artifacts(self._id, str(folder), "adapter")

    def close(self, state: State) -> None:
        """Set the final status of the run."""
        self._client.set_terminated(self._id, STATUS[state])

    def abandon(self) -> None:
        """Do nothing: all work is in the calling thread, which ends with the program."""

    def _params(self, settings: Iterable[tuple[str, Any]]) -> None:
        """Log the settings that the run does not have yet. MLflow refuses changes, but config.yaml is up to date."""
        from mlflow.entities import Param

        logged = self._client.get_run(self._id).data.params if self._resumed else {}
        named = ((name_of(key, MLFLOW), well_formed(str(value))) for key, value in settings)
        new = [Param(key, value[:MOST_CHARACTERS]) for key, value in named if key not in logged]
        for start in range(0, len(new), MOST_PARAMS):
            self._client.log_batch(self._id, params=new[start : start + MOST_PARAMS])


def is_uri(place: str) -> bool:
    """Whether MLflow takes `place` for a URI, not for a folder."""
    return "://" in place or place == "databricks"


def metric_name(tag: str) -> str:
    """The name in MLflow of a TensorBoard `tag`, whose parts may be text of users."""
    return "/".join(name_of(text_of(part), MLFLOW) for part in tag.split("/"))
