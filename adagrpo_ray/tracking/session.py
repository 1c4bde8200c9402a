"""The trackers of a run: which ones there are, and their life."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from adagrpo_ray.cluster.jobs import is_lasting, job_id
from adagrpo_ray.config.tracking import TrackingSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ConfigError, ResourceError, StoppedError, first_line
from adagrpo_ray.runs.history import TRACKED
from adagrpo_ray.runs.observer import Observer, Observers
from adagrpo_ray.runs.reader import RunHistory, load
from adagrpo_ray.storage.places import find, leave
from adagrpo_ray.tracking.mlflow_run import MlflowRun, is_uri
from adagrpo_ray.tracking.ray_metrics import RayMetrics
from adagrpo_ray.tracking.relay import END_S, Relay
from adagrpo_ray.tracking.tracker import State, TrackedRun, Tracker
from adagrpo_ray.tracking.wandb_run import WandbRun


def check_trackers(tracking: TrackingSettings, joined: str | None) -> None:
    """ConfigError where a tracker needs a package that is not installed, a folder that does not last, or a port that
    is taken. `joined` is the address of the Ray that the run joins, None for one of our own.

    Their packages are imported here, and not by two threads at a time, which half of what they import does not stand.
    """
    for key, value, tracker in (("wandb", tracking.wandb, WandbRun), ("mlflow", tracking.mlflow, MlflowRun)):
        if value is None:
            continue
        try:
            tracker.load()
        except ImportError as error:
            raise ConfigError(
                f"tracking.{key}={value!r} needs the package of that name ({error}): pip install 'adagrpo_ray[{key}]', "
                "or leave it null"
            ) from None
    place = tracking.mlflow
    if place is not None and job_id() is not None and not (is_uri(place) or is_lasting(place)):
        raise ConfigError(
            f"tracking.mlflow={place!r} is relative, and Ray deletes a job's working directory; give a "
            "server's URI or an absolute path"
        )
    if tracking.prometheus_port is not None:
        _check_port(tracking.prometheus_port, joined)


def _check_port(port: int, joined: str | None) -> None:
    """A Ray whose port for Prometheus is taken dies soon after its start, and says nothing of it."""
    key = f"tracking.prometheus_port={port}"
    if joined is not None:
        raise ConfigError(
            f"{key} is for a Ray of our own, and this run joins the one at {joined}; leave it null, and start that one "
            f"with --metrics-export-port={port}"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))  # where a Ray of our own listens
        except OSError as error:
            raise ConfigError(f"{key} cannot be used ({error.strerror}); choose another port") from None


@contextmanager
def tracked(config: Config, folder: Path, tell: Callable[[str], None], resumed: bool) -> Iterator[Observer]:
    """All trackers of the run that is written in `folder`, as one observer; the block's end is the run's."""
    trackers: list[Tracker] = []
    if config.tracking.wandb is not None:
        trackers.append(WandbRun(config.tracking.wandb))
    if config.tracking.mlflow is not None:
        trackers.append(MlflowRun(config.tracking.mlflow))
    metrics = RayMetrics(folder.name, tell)
    past = _past(folder, tell) if trackers and resumed else None
    relays = [_relay(tracker, config, folder, past, tell) for tracker in trackers]
    state: State = "failed"
    try:
        yield Observers(metrics, *relays)
        state = "finished"
    except (StoppedError, KeyboardInterrupt):
        state = "killed"
        raise
    finally:
        metrics.close()
        for relay in relays:
            relay.end(state)
        deadline = time.monotonic() + END_S
        for relay in relays:
            relay.wait(deadline)


def _past(folder: Path, tell: Callable[[str], None]) -> RunHistory | None:
    try:
        return load(folder)
    except Exception as error:
        tell(f"warning: trackers hear nothing of what was before: {first_line(error)}")
        return None


def _relay(
    tracker: Tracker, config: Config, folder: Path, past: RunHistory | None, tell: Callable[[str], None]
) -> Relay:
    notes = _Notes(folder)
    run = TrackedRun(folder.name, folder, config, notes.read().get(tracker.title))
    return Relay(tracker, run, past, tell, notes.add)


class _Notes:
    """What trackers note in the run folder: the ids under which they go on."""

    _lock = Lock()  # of several trackers, each with its thread

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def read(self) -> dict[str, Any]:
        """All notes, none where there are none that can be read."""
        try:
            notes = json.loads(find(self._folder, TRACKED) or "{}")
        except (ValueError, ResourceError):
            return {}
        return dict(notes) if isinstance(notes, Mapping) else {}

    def add(self, title: str, note: object) -> None:
        with self._lock:
            leave(self._folder, TRACKED, json.dumps({**self.read(), title: note}, indent=2) + "\n")
