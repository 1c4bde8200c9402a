"""A run from its settings to its end: resolved, written down, and begun again if a learner rank dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from adagrpo_ray.checkpoint.resume import past_of
from adagrpo_ray.config.explain import as_yaml
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import LearnerLostError, first_line
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.runs import Observer, Observers, Summary
from adagrpo_ray.runs.mirror import open_run
from adagrpo_ray.runs.observer import telling
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
    """Train as `config` says, and tell `observer`; `resume` as in `find_past`.

    `name` begins the folder's name where `run.name` is not set; `given` are functions that the configuration names. A
    learner rank that dies costs the steps since the last checkpoint, up to `run.max_restarts` times. Raises what
    `resolve`, `open_run` and `place_and_train` raise.
    """
    tell = observer.phase
    ready = resolve(config, tell, name=name, resume=resume, stop=stop, given=given)
    config, past, home = ready.config, ready.past, ready.home
    text = as_yaml(config, ready.decided)
    restarts = 0
    with ExitStack() as ending:
        while True:
            patience = config.rollout.start_timeout_s if restarts else 0.0
            writing = past.writer(text, tell) if past else open_run(home, text, tell)
            try:
                with writing as writer, tracked(config, writer.folder, tell, past is not None) as trackers:
                    if not restarts:
                        _keep_codes(home, given, tell)
                        ending.enter_context(telling(observer, config, home))
                    observers = Observers(writer, trackers, observer)
                    summary = place_and_train(
                        config, ready.inputs, writer.folder, observers, past, stop, home, patience
                    )
                    if config.run.report:
                        _report(writer.folder, home, tell)
                    return summary
            except LearnerLostError as error:
                restarts += 1
                if restarts > config.run.max_restarts:
                    raise
                tell(f"{error}; beginning again, {restarts} of run.max_restarts={config.run.max_restarts}")
                past = past_of(home, config, tell)


def _keep_codes(home: str, given: Given, tell: Callable[[str], None]) -> None:
    """Say which of the given functions are not what the run in `home` began with, and keep what they are now."""
    if not given.codes:
        return
    try:
        before: dict[str, str] = json.loads(storage.find(home, CODES) or "{}")
    except ValueError:
        before = {}
    for what, code in given.codes.items():
        if before.get(what, code) != code:
            tell(f"warning: {what} is not the code that the run began with")
    storage.leave(home, CODES, json.dumps(dict(given.codes), indent=2) + "\n")


def _report(folder: Path, home: str, tell: Callable[[str], None]) -> None:
    """Leave a report in the run folder. A run is no worse for a report that fails."""
    try:
        from adagrpo_ray.reports import read, write_report  # matplotlib takes a second, which only this needs

        write_report([read(home, folder)], str(folder))
        tell(f"report: {storage.join(home, 'report.html')}")
    except (Exception, SystemExit) as error:
        tell(f"no report: {first_line(error)}; launch/report.py makes one of {home}")
