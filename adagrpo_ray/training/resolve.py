"""A run before it starts: all that can be checked is checked, and no setting is left to where and when it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ray

from adagrpo_ray.checkpoint.resume import Past, find_past
from adagrpo_ray.cluster.jobs import is_lasting, job_folder, job_id
from adagrpo_ray.cluster.placement import local_hardware, place
from adagrpo_ray.config.fixed import flat
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import StoppedError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.stop import Stop
from adagrpo_ray.storage import places as storage
from adagrpo_ray.training.memory import decide_sleep
from adagrpo_ray.training.preflight import Inputs, check

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class ResolvedRun:
    """A run that can start in the folder `home`, a path or a URL, or continue there after its `past`.

    `config` is what runs; `decided` has the settings of it that were given as null, by dotted key.
    """

    config: Config
    decided: Mapping[str, object]
    home: str
    inputs: Inputs
    past: Past | None


def resolve(
    config: Config,
    tell: Tell,
    *,
    name: str,
    resume: str | None = None,
    stop: Stop | None = None,
    given: Given = NOTHING,
) -> ResolvedRun:
    """Check a run, and decide `run.output_dir`, `run.name` and `rollout.sleep`; nothing is written or started.

    A setting that stays null follows from other settings and the data, or, as `learner.packing`, from the nodes of the
    learner. `name` begins the name of the folder if `run.name` is null, `resume` is as in `find_past`, `tell` gets what
    the user should know. Raises StoppedError if `stop` is set, and what `find_past`, `check` and `decide_sleep` raise.
    """
    storage.check(config.run.output_dir, "run.output_dir")
    config = _with(config, "run", output_dir=_output_dir(config.run.output_dir, tell))
    past = None if resume is None else find_past(resume, config, tell)
    inputs = _checked(config, tell, stop, given)
    new = config.run.name or job_id() or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    home = past.place if past else storage.join(config.run.output_dir, new)
    joined = inputs.joined is not None
    ours = None if joined else place(config.rollout, config.learner, local_hardware(), ours=True)
    resolved = _with(config, "run", name=home.rpartition("/")[2])
    resolved = _with(resolved, "rollout", sleep=decide_sleep(config, ours))
    before = dict(flat(config.model_dump()))
    decided = {key: value for key, value in flat(resolved.model_dump()) if value != before[key]}
    return ResolvedRun(resolved, decided, home, inputs, past)


def _checked(config: Config, tell: Tell, stop: Stop | None, given: Given) -> Inputs:
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
    return inputs


def _output_dir(folder: str, tell: Tell) -> str:
    """`run.output_dir` as the same place for all: on a Ray that is there, actors may have another current folder."""
    folder = job_folder(folder, tell)
    return str(Path(folder).absolute()) if ray.is_initialized() and not is_lasting(folder) else folder


def _with(config: Config, section: str, **values: object) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
