"""W&B and MLflow without a network: the records of a run are read back from their files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
from hypothesis import given
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from adagrpo_ray.errors import AdaGRPOError, ConfigError, StoppedError
from adagrpo_ray.runs.history import Mark, sizes
from adagrpo_ray.runs.metric import metrics_of, scalars
from adagrpo_ray.runs.names import name_of
from adagrpo_ray.runs.reader import load
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.tracking import check_trackers, relay, session
from adagrpo_ray.tracking import mlflow_run as mlflow_module
from adagrpo_ray.tracking.mlflow_run import metric_name
from adagrpo_ray.tracking.tracker import TrackedRun
from tests.support import program
from tests.support.texts import texts
from tests.support.tracked import config, evaluated, offline_run, step, track

KEY = "0123456789abcdef" * 2 + "planted0"
PATIENCE_S = 120.0
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", KEY)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", f"{PATIENCE_S:g}")  # its process may start slowly on a busy machine
    monkeypatch.setattr(session, "END_S", PATIENCE_S)
    check_trackers(config("tracking.wandb=project", "tracking.mlflow=folder").tracking, None)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The URL of a server that accepts requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """The URL of a server that refuses every key."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def mlflow_run(place: Path) -> tuple[MlflowClient, Run]:
    """The only run in a folder."""
    client = MlflowClient(place.as_uri())
    experiment = client.get_experiment_by_name("adagrpo_ray")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def planted(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


# --- W&B ---


def test_wandb_has_all_records_of_a_run(tmp_path: Path) -> None:
    notices: list[str] = []
    settings = config("tracking.wandb=me/project", "tracking.tags=[first try, tiny]", "tracking.upload_adapter=true")
    track(settings, tmp_path / "run", [1, 2, 3], notify=notices.append)
    run = offline_run(tmp_path / "run")
    assert (run.name, run.tags, run.exit_code) == ("run", ("first try", "tiny"), 0)
    assert {key: run.config[key] for key in settings.model_dump()} == settings.model_dump(mode="json")
    assert [row["_step"] for row in run.rows] == [0, 1, 2, 3]
    assert scalars(evaluated(0)).items() <= run.rows[0].items()
    assert scalars(step(2)).items() <= run.rows[2].items()
    assert scalars(evaluated(2)).items() <= run.rows[2].items()
    table = json.loads(next((tmp_path / "run").rglob("media/table/samples_3_*.json")).read_text())
    assert dict(zip(table["columns"], table["data"][0], strict=True))["completion"] == "it is 3"
    assert run.summary["summary"]["steps"] == 3
    assert run.summary["reward"] == 3 / 16
    assert run.artifacts == ["adapter_model.safetensors"]
    assert "wandb sync" in "".join(notices)
    assert planted(tmp_path) == []


def test_resumed_run_continues_in_wandb(tmp_path: Path) -> None:
    settings, folder = config("tracking.wandb=project"), tmp_path / "run"
    marks: list[Mark] = []

    def mark(number: int) -> None:
        marks.append(Mark(number, sizes(folder)))

    track(settings, folder, [1, 2, 3, 4], end=AdaGRPOError("the learner is gone"), between=mark)
    before = offline_run(folder)
    assert before.exit_code == 1
    track(settings, folder, [3, 4, 5], mark=marks[1], end=StoppedError("as asked"))
    after = offline_run(folder)
    assert (after.id, after.exit_code) == (before.id, 255)
    assert [row["_step"] for row in after.rows] == [0, 1, 2, 3, 4, 5]
    assert [row["reward"] for row in after.rows[1:]] == [number / 16 for number in range(1, 6)]
    assert len(list(folder.rglob("media/table/samples_*.json"))) == 5


# --- MLflow ---


def test_mlflow_has_all_records_of_a_run(tmp_path: Path) -> None:
    place = tmp_path / "mlruns"
    settings = config(f"tracking.mlflow={place}", "tracking.tags=[first try]", "tracking.upload_adapter=true")
    track(settings, tmp_path / "run", [1, 2, 3])
    client, run = mlflow_run(place)
    assert (run.info.run_name, run.info.status, run.data.tags["first try"]) == ("run", "FINISHED", "true")
    assert run.data.params["learner.learning_rate"] == str(settings.learner.learning_rate)
    for tag, value in scalars(step(3)).items():
        points = client.get_metric_history(run.info.run_id, tag)
        assert [point.step for point in points] == [1, 2, 3]
        assert points[-1].value == value
    held_out = client.get_metric_history(run.info.run_id, "eval/accuracy")
    assert [(point.step, point.value) for point in held_out] == [(0, 0.0), (2, 0.25)]
    files = {path.name: path for path in place.rglob("artifacts/**/*") if path.is_file()}
    assert json.loads(files["summary.json"].read_text())["steps"] == 3
    assert files["adapter_model.safetensors"].read_bytes() == b"weights"
    assert "learning_rate" in files["config.yaml"].read_text()
    table = json.loads(files["step-000003.json"].read_text())
    assert dict(zip(table["columns"], table["data"][0], strict=True))["completion"] == "it is 3"
    assert planted(tmp_path) == []


def test_resumed_run_continues_in_mlflow_without_repeated_steps(tmp_path: Path) -> None:
    place, folder = tmp_path / "mlruns", tmp_path / "run"
    settings = config(f"tracking.mlflow={place}")
    marks: list[Mark] = []

    def mark(number: int) -> None:
        marks.append(Mark(number, sizes(folder)))

    track(settings, folder, [1, 2, 3, 4], end=StoppedError("as asked"), between=mark)
    _, before = mlflow_run(place)
    assert before.info.status == "KILLED"
    longer = config(f"tracking.mlflow={place}", "run.steps=9")
    track(longer, folder, [3, 4, 5, 6], mark=marks[1], end=AdaGRPOError("the learner is gone"))
    client, after = mlflow_run(place)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FAILED")
    for tag, steps in (("reward", [1, 2, 3, 4, 5, 6]), ("eval/accuracy", [0, 2, 4, 6])):
        assert [point.step for point in client.get_metric_history(after.info.run_id, tag)] == steps
    assert "steps: 9" in next(place.rglob("artifacts/config.yaml")).read_text()


def test_tracker_added_on_resume_gets_the_earlier_steps(tmp_path: Path) -> None:
    place, folder = tmp_path / "mlruns", tmp_path / "run"
    track(config(), folder, [1, 2])
    track(config(f"tracking.mlflow={place}"), folder, [3], mark=Mark(2, sizes(folder)))
    client, run = mlflow_run(place)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "step_time")] == [1, 2, 3]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "eval/accuracy")] == [0, 2]


def test_names_of_difficulties_are_escaped_for_mlflow() -> None:
    assert metric_name("time/rollout") == "time/rollout"
    assert metric_name("accuracy_by_difficulty/3 digits") == "accuracy_by_difficulty/3 digits"
    assert metric_name(f"accuracy_by_difficulty/{name_of('../../<b>')}") == "accuracy_by_difficulty/:2E.:2F..:2F:3Cb:3E"
    assert metric_name(f"accuracy_by_difficulty/{name_of('..')}") == "accuracy_by_difficulty/:2E."
    assert metric_name(f"rewards/{name_of('m:prüfe')}/mean") == "rewards/m:prüfe/mean"


@given(texts)
def test_mlflow_accepts_every_metric_name(text: str) -> None:
    for metric in (*metrics_of(StepRecord), *metrics_of(EvaluationRecord)):
        if text and metric.label is not None:
            name = metric_name(metric.tag(text))
            _validate_metric_name(name)
            assert len(name) <= MAX_ENTITY_KEY_LENGTH
            assert all(len(part.encode()) < 256 for part in name.split("/"))
            assert len(name.split("/")) == len(metric.name.split("/"))


@pytest.mark.slow
def test_resumed_run_is_one_run_in_both_trackers(tmp_path: Path) -> None:
    place, folder = tmp_path / "mlruns", tmp_path / "run"
    options = ("tracking.wandb=project", f"tracking.mlflow={place}", "tracking.upload_adapter=true")
    for steps in (2, 4):
        output = program.train(tmp_path, steps, "--resume", "auto", *options)
        assert "Weights & Biases: offline: wandb sync" in output
        assert "MLflow: run " in output
        assert "warning" not in output
    history = load(folder)
    client, run = mlflow_run(place)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    there = offline_run(folder)
    assert there.exit_code == 0
    assert [row["_step"] for row in there.rows] == [0, 1, 2, 3, 4]
    for record in history.steps:
        assert scalars(record).items() <= there.rows[record.step].items()
        for tag, value in scalars(record).items():
            points = {point.step: point.value for point in client.get_metric_history(run.info.run_id, metric_name(tag))}
            assert points[record.step] == value
    artifacts = [path.path for path in client.list_artifacts(run.info.run_id, "adapter")]
    assert "adapter/adapter_model.safetensors" in artifacts
    assert "adapter_model.safetensors" in there.artifacts
    assert planted(tmp_path) == []


# --- trackers that fail ---


@pytest.mark.faults
def test_unreachable_tracker_prints_one_warning(tmp_path: Path) -> None:
    notices: list[str] = []
    with socket.socket() as bound, pytest.MonkeyPatch.context() as environment:
        bound.bind(("127.0.0.1", 0))  # reserves the port, on which nothing listens
        port = bound.getsockname()[1]
        environment.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        track(config(f"tracking.mlflow=http://127.0.0.1:{port}"), tmp_path / "run", [1, 2, 3], notify=notices.append)
    (line,) = notices
    assert line.startswith("warning: MLflow is disabled, the run continues without it: ")
    assert str(port) in line
    assert KEY not in line
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.faults
def test_tracker_that_never_answers_delays_no_step(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "END_S", 0.5)
    notices: list[str] = []
    track(config(f"tracking.mlflow={silent_server}"), tmp_path / "run", [1, 2, 3], notify=notices.append)
    assert notices == [
        "warning: MLflow is disabled, the run continues without it: it did not accept all records in time"
    ]


@pytest.mark.faults
def test_tracker_that_falls_behind_is_disabled(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "END_S", 0.5)
    monkeypatch.setattr(relay, "MOST_WAITING", 3)
    notices: list[str] = []

    track(config(f"tracking.mlflow={silent_server}"), tmp_path / "run", range(1, 9), notify=notices.append)
    assert notices == ["warning: MLflow is disabled, the run continues without it: it is 3 records behind"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 8


@pytest.mark.faults
def test_disabled_tracker_gets_no_more_earlier_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """Accepts its first point only after it was abandoned."""

        title = "Slow"

        def __init__(self) -> None:
            self.begun, self.abandoned, self.steps = Event(), Event(), list[int]()

        def open(self, run: TrackedRun) -> tuple[str, dict[str, str]]:
            return "somewhere", {}

        def has(self, tag: str, step: int) -> bool:
            return False

        def scalars(self, values: object, step: int) -> None:
            self.steps.append(step)
            self.begun.set()
            assert self.abandoned.wait(PATIENCE_S)

        def samples(self, groups: object, step: int) -> None: ...

        def summary(self, summary: object, adapter: str | None) -> None: ...

        def close(self, state: str) -> None: ...

        def abandon(self) -> None:
            self.abandoned.set()

    track(config(), tmp_path / "run", [1, 2, 3])
    monkeypatch.setattr(relay, "MOST_WAITING", 1)
    slow, notices = Slow(), list[str]()
    run = TrackedRun("run", tmp_path / "run", config(), None)
    between = relay.Relay(slow, run, load(tmp_path / "run"), notices.append, lambda title, note: None)
    between.step(step(4))
    assert slow.begun.wait(PATIENCE_S)
    for number in (5, 6):
        between.step(step(number))
    between.end("finished")
    between.wait(time.monotonic() + PATIENCE_S)
    assert slow.steps == [0]
    assert notices == [
        "Slow: somewhere",
        "warning: Slow is disabled, the run continues without it: it is 1 records behind",
    ]


@pytest.mark.faults
def test_tracker_that_fails_during_a_run_is_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, notices, logged = tmp_path / "mlruns", list[str](), Event()
    samples = mlflow_module.MlflowRun.samples

    def log(self: mlflow_module.MlflowRun, groups: Any, number: int) -> None:
        samples(self, groups, number)
        logged.set()  # it has the whole first step, and waits for the second

    def break_it(number: int) -> None:
        if number == 1:
            assert logged.wait(PATIENCE_S)
            place.rename(tmp_path / "gone")
            place.write_text("no folder")

    monkeypatch.setattr(mlflow_module.MlflowRun, "samples", log)
    settings = config(f"tracking.mlflow={place}")
    track(settings, tmp_path / "run", [1, 2, 3, 4], notify=notices.append, between=break_it)
    assert [line.split(":")[0] for line in notices] == [
        "MLflow",
        "warning",
    ]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.faults
def test_wandb_without_a_network_leaves_no_process(tmp_path: Path, silent_server: str) -> None:
    script = """
import sys
from pathlib import Path
from adagrpo_ray.tracking import check_trackers, relay, session
from tests.support.tracked import config, track
settings = config("tracking.wandb=project")
check_trackers(settings.tracking, None)
session.END_S = 1.0
track(settings, Path(sys.argv[1]) / "run", [1, 2], notify=lambda text: print(text, flush=True))
"""
    variables = {**os.environ, "WANDB_MODE": "online", "WANDB_BASE_URL": silent_server, "PYTHONPATH": "."}
    command = [sys.executable, "-c", script, str(tmp_path)]
    started = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as running:
        while running.poll() is None:
            started |= program.children(running)
            time.sleep(0.1)
        output, errors = running.communicate()
    (line,) = output.splitlines()
    assert line.startswith("warning: Weights & Biases is disabled, the run continues without it: ")
    assert errors == ""
    assert running.returncode == 0
    _, left = psutil.wait_procs(started, timeout=PATIENCE_S)
    assert [program.title(process) for process in left] == []
    assert planted(tmp_path) == []


def test_key_refused_by_wandb_prints_one_warning_without_the_key(
    tmp_path: Path, refusing_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", refusing_server)
    notices: list[str] = []
    track(config("tracking.wandb=project"), tmp_path / "run", [1, 2], notify=notices.append)
    (line,) = notices
    assert line.startswith("warning: Weights & Biases is disabled, the run continues without it: ")
    assert "Failed to authenticate" in line
    assert KEY not in line


# --- before anything starts ---


@pytest.mark.parametrize("key", ["wandb", "mlflow"])
def test_missing_package_of_a_tracker_is_an_error_that_names_the_extra(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setitem(sys.modules, key, None)
    error = refused(f"tracking.{key}=x")
    assert f"tracking.{key}='x'" in error
    assert f"pip install 'adagrpo_ray[{key}]'" in error


def test_relative_mlflow_folder_is_refused_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"metadata": {"job_submission_id": "job-1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with pytest.raises(ConfigError, match=r"tracking\.mlflow='mlruns' is relative"):
        check_trackers(config("tracking.mlflow=mlruns").tracking, None)
    for place in ("/shared/mlruns", "https://host/mlflow", "databricks"):
        check_trackers(config(f"tracking.mlflow={place}").tracking, None)


@pytest.mark.parametrize("name", ["a/b/c", "a b", "a?b", "/a"])
def test_invalid_wandb_project_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.wandb="):
        config(f"tracking.wandb={name}")
