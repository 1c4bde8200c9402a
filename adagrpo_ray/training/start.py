"""A run on checked inputs: a Ray cluster, actors on it, and the trainer."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from adagrpo_ray.cards.card import Facts, adapter_card, package_versions
from adagrpo_ray.checkpoint.resume import Past
from adagrpo_ray.cluster.authentication import takes_token
from adagrpo_ray.cluster.nodes import check_shared
from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.secrets import shown_command
from adagrpo_ray.config.tree import Config
from adagrpo_ray.model.identity import identify
from adagrpo_ray.runs import Observer, Summary
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.actors import actors, connect
from adagrpo_ray.training.preflight import Inputs
from adagrpo_ray.training.trainer import train_on

UNGUARDED = (
    "asks for no token, so that whoever reaches its ports can run anything on it; start it with RAY_AUTH_MODE=token "
    "(docs/jobs.md)"
)


def place_and_train(
    config: Config,
    inputs: Inputs,
    folder: Path,
    observer: Observer,
    past: Past | None = None,
    stop: Stop | None = None,
    home: str | None = None,
    patience_s: float = 0.0,
) -> Summary:
    """A whole run on checked inputs, or the rest of one with a `past`; leaves the adapter in `home`/adapter.

    `observer` writes into `folder`, the learners into `home`, a path or URL: `folder` too unless given.
    Ends soon after `stop` is set, with a checkpoint of the last finished step; raises StoppedError if that was
    by a signal or no step was finished, LearnerLostError if a learner rank died, and ResourceError if a joined
    cluster has no room, after `patience_s` of waiting for it.
    """
    with connect(config, inputs.joined, patience_s) as placement:
        if inputs.joined is not None:
            if not takes_token():
                observer.phase(f"warning: the Ray cluster at {inputs.joined} {UNGUARDED}")
            check_shared(home or str(folder))
        observer.phase(f"starting {_where(config, placement)}")
        with actors(config, placement, inputs, stop) as running:
            return train_on(running, config, folder, observer, past, stop, home, partial(_card, config, inputs))


def _card(config: Config, inputs: Inputs, summary: Summary) -> str:
    """The model card of the adapter that the run leaves, with the command that this process is."""
    prompts = (len(inputs.prompts.train), len(inputs.prompts.held_out))
    base = identify(config.model.path, inputs.model_path)
    command = shown_command(["python", *sys.orig_argv[1:]])
    return adapter_card(Facts(config, base, summary, command, prompts, package_versions(), inputs.template))


def _where(config: Config, placement: Placement) -> str:
    """The placement in one line."""
    turns = "both stay there" if not config.rollout.sleep else "vLLM sleeps while the learner trains"
    return ", ".join([*placement.describe().splitlines(), *([turns] if placement.shared else [])])
