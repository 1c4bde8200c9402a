"""Resolves a run before it starts: makes all possible checks, and decides the settings that depend on the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray

from adagrpo_ray.checkpoint.resume import Past, find_past
from adagrpo_ray.cluster.jobs import is_lasting, job_folder, job_id
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import StoppedError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.stop import Stop
from adagrpo_ray.storage import places as storage
from adagrpo_ray.training.memory import decide_sleep
from adagrpo_ray.training.preflight import Inputs, check

Notify = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class ResolvedRun:
    """A run that can start or continue.

    - `config`: the settings of the run.
    - `decided`: the settings that `resolve` decided, by dotted key.
    - `home`: the folder of the run, a path or a URL.
    - `inputs`: the checked inputs.
    - `past`: the run to continue; None for a new run.
    """

    config: Config
    decided: Mapping[str, object]
    home: str
    inputs: Inputs
    past: Past | None


def resolve(
    config: Config,
    notify: Notify,
    *,
    name: str,
    resume: str | None = None,
    stop: Stop,
    given: Given = NOTHING,
) -> ResolvedRun:
    """Check a run, and decide `run.output_dir`, `run.name` and `rollout.sleep`; writes and starts nothing.

    Other settings that are null depend on settings and data or, like `learner.packing`, on the nodes of the learner.
    `name` is the prefix of the folder's name if `run.name` is null, `resume` is as in `find_past`, and `notify` gets
    notices for the user. Raises StoppedError if `stop` is set, and the errors of `find_past`, `check` and
    `decide_sleep`.
    """
    storage.check(config.run.output_dir, "run.output_dir")
    config = _with(config, "run", output_dir=_output_dir(config.run.output_dir, notify))
    past = None if resume is None else find_past(resume, config, notify)
    inputs = _checked(config, notify, stop, given)
    new = config.run.name or job_id() or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    home = past.place if past else storage.join(config.run.output_dir, new)
    name, sleep = home.rpartition("/")[2], decide_sleep(config, inputs.placement)
    given_as = {"run.name": (config.run.name, name), "rollout.sleep": (config.rollout.sleep, sleep)}
    decided = {key: value for key, (before, value) in given_as.items() if value != before}
    resolved = _with(_with(config, "run", name=name), "rollout", sleep=sleep)
    return ResolvedRun(resolved, decided, home, inputs, past)


def _checked(config: Config, notify: Notify, stop: Stop, given: Given) -> Inputs:
    if config.model.trust_remote_code:
        notify(f"warning: model.trust_remote_code=true runs Python code of {config.model.path}, here and in all actors")
    notify("checking model, data and rewards")
    inputs = check(config, given, stop=stop)
    if stop.is_set():
        raise StoppedError("stopped as asked, before anything was started")
    prompts = inputs.prompts
    dropped = "".join(f", {count} dropped {reason}" for reason, count in prompts.dropped.items())
    notify(f"{len(prompts.train)} prompts to train on, {len(prompts.held_out)} held out{dropped}")
    for note in (*prompts.notes, *inputs.notices):
        notify(note)
    return inputs


def _output_dir(folder: str, notify: Notify) -> str:
    """`run.output_dir`, absolute if this process is connected to Ray: actors may have another current folder."""
    folder = job_folder(folder, notify)
    return str(Path(folder).absolute()) if ray.is_initialized() and not is_lasting(folder) else folder


def _with(config: Config, section: str, **values: object) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
