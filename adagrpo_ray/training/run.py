"""A run from its settings to its end: resolves it, writes its folder, and restarts it if a learner rank dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from adagrpo_ray.checkpoint.resume import past_of
from adagrpo_ray.config.listing import as_yaml
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import LearnerLostError, first_line
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.runs import Observer, Observers, Summary
from adagrpo_ray.runs.mirror import open_run
from adagrpo_ray.runs.observer import run_events
from adagrpo_ray.stop import Stop
from adagrpo_ray.storage import places as storage
from adagrpo_ray.tracking import tracked
from adagrpo_ray.training.resolve import resolve
from adagrpo_ray.training.start import place_and_train

CODES = "functions.json"
"""Fingerprints of the functions given to a run, in its folder."""


def run(
    config: Config,
    observer: Observer,
    *,
    name: str = "run",
    resume: str | None = None,
    stop: Stop | None = None,
    given: Given = NOTHING,
) -> Summary:
    """Train with the settings of `config`, and pass the events to `observer`; `resume` as in `find_past`.

    `name` is the prefix of the folder's name if `run.name` is not set; `given` are functions that the configuration
    names. If a learner rank dies, the run restarts from its last checkpoint, up to `run.max_restarts` times. Raises the
    errors of `resolve`, `open_run` and `place_and_train`.
    """
    notify, stop = observer.phase, stop or Stop()
    ready = resolve(config, notify, name=name, resume=resume, stop=stop, given=given)
    config, past, home = ready.config, ready.past, ready.home
    text = as_yaml(config, ready.decided)
    restarts = 0
    with ExitStack() as ending:
        while True:
            patience = config.rollout.start_timeout_s if restarts else 0.0
            writing = past.writer(text, notify) if past else open_run(home, text, notify)
            try:
                with writing as writer, tracked(config, writer.folder, notify, past is not None) as trackers:
                    if not restarts:
                        _check_codes(home, given, notify)
                        ending.enter_context(run_events(observer, config, home))
                    observers = Observers(writer, trackers, observer)
                    summary = place_and_train(
                        config, ready.inputs, writer.folder, observers, past, stop, home, patience
                    )
                    if config.run.report:
                        _report(writer.folder, home, notify)
                    return summary
            except LearnerLostError as error:
                restarts += 1
                if restarts > config.run.max_restarts:
                    raise
                notify(f"{error}; restarting, {restarts} of run.max_restarts={config.run.max_restarts}")
                past = past_of(home, config, notify)


def _check_codes(home: str, given: Given, notify: Callable[[str], None]) -> None:
    """Warn if a given function has changed since the run in `home` began, and save the current fingerprints."""
    if not given.codes:
        return
    try:
        before: dict[str, str] = json.loads(storage.find(home, CODES) or "{}")
    except ValueError:
        before = {}
    for function, code in given.codes.items():
        if before.get(function, code) != code:
            notify(f"warning: {function} is not the code that the run began with")
    storage.leave(home, CODES, json.dumps(dict(given.codes), indent=2) + "\n")


def _report(folder: Path, home: str, notify: Callable[[str], None]) -> None:
    """Write a report into the run folder. If that fails, notify about it: the run is valid without a report."""
    try:
        from adagrpo_ray.reports import read, write_report  # matplotlib takes a second, which only this needs

        write_report([read(home, folder)], str(folder))
        notify(f"report: {storage.join(home, 'report.html')}")
    except (Exception, SystemExit) as error:
        notify(f"no report: {first_line(error)}; launch/report.py makes one of {home}")
