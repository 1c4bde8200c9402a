"""A run from its settings to its end: checked, written down, and begun again where a learner rank dies."""

from __future__ import annotations

import time
from contextlib import ExitStack
from threading import Event

from adagrpo_ray.config.explain import as_yaml
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import LearnerLostError, StoppedError
from adagrpo_ray.jobs import check_job_folder, job_id
from adagrpo_ray.observe import Observer, Observers, Summary
from adagrpo_ray.observe.mirror import open_run
from adagrpo_ray.observe.observer import telling
from adagrpo_ray.preflight import check
from adagrpo_ray.resume import find_past, past_of
from adagrpo_ray.storage import join
from adagrpo_ray.tracking import tracked
from adagrpo_ray.trainer import train


def run(
    config: Config, observer: Observer, *, name: str = "run", resume: str | None = None, stop: Event | None = None
) -> Summary:
    """Train as `config` says, and tell `observer`; `resume` as in `find_past`.

    `name` begins the folder's name where `run.name` is not set. A learner rank that dies costs the steps since the last
    checkpoint, up to `run.max_restarts` times. Raises what `check`, `find_past` and `train` raise.
    """
    tell = observer.phase
    config = check_job_folder(config, tell)
    past = None if resume is None else find_past(resume, config, tell)
    if config.model.trust_remote_code:
        tell(f"warning: model.trust_remote_code=true runs Python code of {config.model.path}, here and in all actors")
    tell("checking model, data and rewards")
    inputs = check(config)
    if stop is not None and stop.is_set():
        raise StoppedError("stopped as asked, before anything was started")
    prompts = inputs.prompts
    dropped = "".join(f", {count} dropped {reason}" for reason, count in prompts.dropped.items())
    tell(f"{len(prompts.train)} prompts to train on, {len(prompts.held_out)} held out{dropped}")
    home = join(config.run.folder, config.run.name or job_id() or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    restarts = 0
    with ExitStack() as ending:
        while True:
            patience = config.rollout.start_timeout_s if restarts else 0.0
            writing = past.writer(config, tell) if past else open_run(home, as_yaml(config), tell)
            try:
                with writing as writer, tracked(config, writer.folder, tell, past is not None) as trackers:
                    home = writer.home
                    if not restarts:
                        ending.enter_context(telling(observer, config, home))
                    observers = Observers(writer, trackers, observer)
                    named = config.model_copy(
                        update={"run": config.run.model_copy(update={"name": writer.folder.name})}
                    )
                    return train(named, inputs, writer.folder, observers, past, stop, writer.home, patience)
            except LearnerLostError as error:
                restarts += 1
                if restarts > config.run.max_restarts:
                    raise
                tell(f"{error}; beginning again, {restarts} of run.max_restarts={config.run.max_restarts}")
                past = past_of(home, config, tell)
