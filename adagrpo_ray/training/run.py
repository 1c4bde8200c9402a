"""A run from its settings to its end: checked, written down, and begun again where a learner rank dies."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from adagrpo_ray.checkpoint.resume import find_past, past_of
from adagrpo_ray.cluster.jobs import check_job_folder, job_id
from adagrpo_ray.config.explain import as_yaml
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import LearnerLostError, StoppedError, first_line
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.runs import Observer, Observers, Summary
from adagrpo_ray.runs.mirror import open_run
from adagrpo_ray.runs.observer import telling
from adagrpo_ray.stop import Stop
from adagrpo_ray.storage import places as storage
from adagrpo_ray.tracking import tracked
from adagrpo_ray.training.actors import as_connected
from adagrpo_ray.training.preflight import check
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
    `as_connected`, `check`, `find_past` and `place_and_train` raise.
    """
    tell = observer.phase
    storage.check(config.run.output_dir, "run.output_dir")
    written = config = check_job_folder(config, tell)
    config = as_connected(config)
    past = None if resume is None else find_past(resume, config, tell)
    if config.model.trust_remote_code:
        tell(f"warning: model.trust_remote_code=true runs Python code of {config.model.path}, here and in all actors")
    tell("checking model, data and rewards")
    inputs = check(config, given, stop=stop)
    if stop is not None and stop.is_set():
        raise StoppedError("stopped as asked, before anything was started")
    prompts = inputs.prompts
    dropped = "".join(f", {count} dropped {reason}" for reason, count in prompts.dropped.items())
    tell(f"{len(prompts.train)} prompts to train on, {len(prompts.held_out)} held out{dropped}")
    for note in (*prompts.notes, *inputs.notices):
        tell(note)
    home = storage.join(
        config.run.output_dir, config.run.name or job_id() or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    restarts = 0
    with ExitStack() as ending:
        while True:
            patience = config.rollout.start_timeout_s if restarts else 0.0
            writing = past.writer(written, tell) if past else open_run(home, as_yaml(written), tell)
            try:
                with writing as writer, tracked(config, writer.folder, tell, past is not None) as trackers:
                    home = writer.home
                    if not restarts:
                        _keep_codes(home, given, tell)
                        ending.enter_context(telling(observer, config, home))
                    observers = Observers(writer, trackers, observer)
                    named = config.model_copy(
                        update={"run": config.run.model_copy(update={"name": writer.folder.name})}
                    )
                    summary = place_and_train(named, inputs, writer.folder, observers, past, stop, home, patience)
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
