"""Creates, checks and closes the trackers of a run."""

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
    """Check that the trackers can be used.

    `joined` is the address of the Ray that the run joins, None if it starts one.
    Raises ConfigError if a tracker needs a package that is not installed, a folder that Ray deletes, or a port that is
    in use. Imports the packages of the trackers: later two threads would import them at the same time, which many of
    their dependencies do not support.
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
    """Raise ConfigError unless a new Ray can listen on the port: without it Ray dies soon after its start, silently."""
    key = f"tracking.prometheus_port={port}"
    if joined is not None:
        raise ConfigError(
            f"{key} is for a Ray that the run starts, but this run joins the one at {joined}; leave it null, and start "
            f"that one with --metrics-export-port={port}"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))  # the address that a local Ray listens on
        except OSError as error:
            raise ConfigError(f"{key} cannot be used ({error.strerror}); choose another port") from None


@contextmanager
def tracked(config: Config, folder: Path, notify: Callable[[str], None], resumed: bool) -> Iterator[Observer]:
    """Open all trackers of the run in `folder`, as one observer; close them when the block ends."""
    trackers: list[Tracker] = []
    if config.tracking.wandb is not None:
        trackers.append(WandbRun(config.tracking.wandb))
    if config.tracking.mlflow is not None:
        trackers.append(MlflowRun(config.tracking.mlflow))
    metrics = RayMetrics(folder.name, notify)
    past = _past(folder, notify) if trackers and resumed else None
    relays = [_relay(tracker, config, folder, past, notify) for tracker in trackers]
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


def _past(folder: Path, notify: Callable[[str], None]) -> RunHistory | None:
    try:
        return load(folder)
    except Exception as error:
        notify(f"warning: trackers do not get the steps before the resumption: {first_line(error)}")
        return None


def _relay(
    tracker: Tracker, config: Config, folder: Path, past: RunHistory | None, notify: Callable[[str], None]
) -> Relay:
    notes = _Notes(folder)
    run = TrackedRun(folder.name, folder, config, notes.read().get(tracker.title))
    return Relay(tracker, run, past, notify, notes.add)


class _Notes:
    """The notes of the trackers in the run folder: the ids with which they continue the run."""

    _lock = Lock()  # each tracker has a thread of its own

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def read(self) -> dict[str, Any]:
        """All notes by title; none if they cannot be read."""
        try:
            notes = json.loads(find(self._folder, TRACKED) or "{}")
        except (ValueError, ResourceError):
            return {}
        return dict(notes) if isinstance(notes, Mapping) else {}

    def add(self, title: str, note: object) -> None:
        with self._lock:
            leave(self._folder, TRACKED, json.dumps({**self.read(), title: note}, indent=2) + "\n")
