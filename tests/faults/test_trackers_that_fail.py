"""Trackers that raise or hang: the run continues without the tracker, and prints one warning."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from mlflow.utils.validation import MAX_METRICS_PER_BATCH
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adagrpo_ray.errors import ResourceError
from adagrpo_ray.runs import RunWriter
from adagrpo_ray.runs.events import EventFile
from adagrpo_ray.runs.history import TRACKED, Mark, sizes
from adagrpo_ray.tracking import relay, session
from adagrpo_ray.tracking.mlflow_run import MlflowRun, metric_name
from adagrpo_ray.tracking.tracker import TrackedRun
from adagrpo_ray.training import run as running
from tests.support.histories import STEP
from tests.support.tracked import config, track

METHODS = ("open", "has", "scalars", "samples", "summary", "close")
ERRORS = {
    "an error": ValueError("no\nsuch thing"),
    "an error without words": RuntimeError(),
    "an exit": SystemExit(3),
    "an interrupt": KeyboardInterrupt(),
    "half a character": ValueError("\ud800"),
}


class Tracker:
    """Accepts all records, except that the methods named in `broken` call `fails`."""

    title = "MLflow"
    broken = ""

    def __init__(self, place: str) -> None: ...

    @staticmethod
    def fails() -> None: ...

    def _call(self, name: str) -> None:
        if name in type(self).broken.split():
            type(self).fails()

    def open(self, run: TrackedRun) -> tuple[str, Mapping[str, str]]:
        self._call("open")
        return "somewhere", {}

    def has(self, tag: str, step: int) -> bool:
        self._call("has")
        return False

    def scalars(self, values: object, step: int) -> None:
        self._call("scalars")

    def samples(self, groups: object, step: int) -> None:
        self._call("samples")

    def summary(self, summary: object, adapter: str | None) -> None:
        self._call("summary")

    def close(self, state: str) -> None:
        self._call("close")

    def abandon(self) -> None:
        self._call("abandon")
        raise SystemExit("no more")


def broken_tracker(monkeypatch: pytest.MonkeyPatch, method: str, fails: Callable[[], None]) -> None:
    broken = type("Broken", (Tracker,), {"broken": method, "fails": staticmethod(fails)})
    monkeypatch.setattr(session, "MlflowRun", broken)


def raising(error: BaseException) -> Callable[[], None]:
    def fails() -> None:
        raise error

    return fails


def finished(folder: Path, steps: int) -> bool:
    """Whether the run folder has the records and the summary of this many steps."""
    summary = json.loads((folder / "summary.json").read_text())
    return len((folder / "metrics.jsonl").read_text().splitlines()) == summary["steps"] == steps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_tracker_may_raise_any_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException
) -> None:
    broken_tracker(monkeypatch, method, raising(error))
    notices: list[str] = []
    track(config("tracking.mlflow=somewhere"), tmp_path / "run", [1, 2, 3], notify=notices.append)
    assert finished(tmp_path / "run", 3)
    (warning,) = (line for line in notices if line.startswith("warning: "))
    assert warning.startswith("warning: MLflow is disabled, the run continues without it: ")
    assert "\n" not in warning


@pytest.mark.parametrize("method", [*METHODS, "scalars abandon"])
def test_tracker_may_hang_in_any_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, hanging: Event
) -> None:
    monkeypatch.setattr(session, "END_S", 0.5)
    monkeypatch.setattr(relay, "ABANDON_S", 0.5)
    broken_tracker(monkeypatch, method, lambda: hanging.wait(60) and None)
    notices: list[str] = []
    track(config("tracking.mlflow=somewhere"), tmp_path / "run", [1, 2, 3], notify=notices.append)
    assert finished(tmp_path / "run", 3)
    assert sum("is disabled" in line for line in notices) == 1


@pytest.fixture
def hanging() -> Iterator[Event]:
    """An event that is not set while the test runs."""
    event = Event()
    yield event
    event.set()


@pytest.mark.parametrize("left", ["{", "[1]", "\ud800".encode("utf-8", "surrogatepass"), None], ids=str)
def test_broken_notes_of_trackers_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str | bytes | None
) -> None:
    monkeypatch.setattr(session, "MlflowRun", Tracker)
    folder = tmp_path / "run"
    track(config(), folder, [1, 2])
    if left is None:
        (folder / TRACKED).mkdir()
    else:
        (folder / TRACKED).write_bytes(left if isinstance(left, bytes) else left.encode())
    track(config("tracking.mlflow=somewhere"), folder, [3], mark=Mark(2, sizes(folder)))
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


# --- TensorBoard ---


@pytest.mark.parametrize("error", [ValueError("no\nsuch thing"), SystemExit(3)])
def test_tensorboard_is_disabled_if_its_file_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    notices: list[str] = []

    def fail(*_: object) -> None:
        raise error

    with RunWriter(tmp_path / "run", "", notify=notices.append) as writer:
        writer.step(STEP)
        monkeypatch.setattr(EventFile, "add", fail)
        for number in (2, 3):
            writer.step(replace(STEP, step=number))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    (line,) = notices
    assert line.startswith("warning: TensorBoard is disabled, the run continues without it: ")


def test_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventFile, "add", fail)
    with pytest.raises(ResourceError, match="No space left"), RunWriter(tmp_path / "run", "") as writer:
        writer.step(STEP)


def test_difficulties_that_are_no_file_names_have_curves(tmp_path: Path) -> None:
    difficulties = {chr(0xD800): 0.25, chr(0xD801): 0.5, "a\x00b": 0.75}
    with RunWriter(tmp_path / "run", "") as writer:
        writer.step(replace(STEP, accuracy_by_difficulty=difficulties, reward=1e300))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [
        events.Scalars(f"accuracy_by_difficulty/{name}")[0].value for name in ("%ED%A0%80", "%ED%A0%81", "a%00b")
    ] == [*difficulties.values()]
    assert events.Scalars("reward")[0].value == pytest.approx(3.4028235e38)  # float32 has no 1e300


@pytest.mark.parametrize("error", [ValueError("no glyphs"), SystemExit(3), MemoryError()])
def test_failed_report_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("adagrpo_ray.reports.read", fail)
    notices: list[str] = []
    running._report(tmp_path, str(tmp_path), notices.append)
    (line,) = notices
    assert line.startswith("no report: ")


# --- more metrics than one request may have ---


def test_many_metrics_are_split_into_requests_for_mlflow() -> None:
    class Client:
        def __init__(self) -> None:
            self.batches: list[list[Any]] = []

        def log_batch(self, run: str, metrics: list[Any]) -> None:
            assert len(metrics) <= MAX_METRICS_PER_BATCH
            self.batches.append(metrics)

    mlflow = MlflowRun("folder")
    mlflow._client = client = Client()
    values = {f"eval/accuracy_by_difficulty/class {number}": number / 5000 for number in range(2500)}
    mlflow.scalars(values, 3)
    assert {point.key: point.value for batch in client.batches for point in batch} == {
        metric_name(tag): value for tag, value in values.items()
    }
    assert len(client.batches) == 3
