"""Starts a run on checked inputs: the Ray cluster, the actors on it, and the trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from adagrpo_ray.cards.card import Facts, adapter_card, package_versions
from adagrpo_ray.checkpoint.resume import Past
from adagrpo_ray.cluster.authentication import warn_unguarded
from adagrpo_ray.cluster.connecting import connect
from adagrpo_ray.cluster.nodes import check_shared
from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.secrets import shown_command
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import DivergedError, ExtensionError, RecordError, RewardError, RolloutError, StoppedError
from adagrpo_ray.model.identity import identify
from adagrpo_ray.rollout.architectures import check_lora_type
from adagrpo_ray.runs import Observer, Summary
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.actors import Actors, actors
from adagrpo_ray.training.learners import Learners
from adagrpo_ray.training.preflight import Inputs
from adagrpo_ray.training.trainer import Trainer


def place_and_train(
    config: Config,
    inputs: Inputs,
    folder: Path,
    observer: Observer,
    past: Past | None,
    stop: Stop,
    home: str,
    patience_s: float,
) -> Summary:
    """Do a whole run on checked inputs, or the rest of a run with a `past`; writes the adapter to `home`/adapter.

    `observer` writes into `folder`, and the learners into `home`, a path or URL. The run ends soon after `stop` is set,
    with a checkpoint of the last finished step.

    Raises StoppedError if a signal stopped the run or no step was finished, and LearnerLostError if a learner rank
    died. Raises ResourceError if a joined cluster has no room, after waiting for it for `patience_s` seconds, and
    ConfigError as `check_lora_type`, which a local run has passed before.
    """
    with connect(config, inputs.joined, patience_s) as placement:
        if inputs.joined is not None:
            warn_unguarded(inputs.joined, observer.phase)
            check_shared(home)
            check_lora_type(config.model, config.rollout, gpu=placement.gpus > 0)
        observer.phase(f"starting {_where(config, placement)}")
        with actors(config, placement, inputs, stop, home) as running:
            return train_on(running, config, folder, observer, past, stop, home, partial(_card, config, inputs))


def train_on(
    running: Actors,
    config: Config,
    folder: Path,
    observer: Observer,
    past: Past | None,
    stop: Stop,
    home: str,
    card: Callable[[Summary], str],
) -> Summary:
    """Do the steps and evaluations of `place_and_train` on actors that have begun; `card` makes the model card."""
    learners = Learners(running.learners, stop, observer.phase)
    trainer = Trainer(learners, config, folder, observer, stop, home, card)
    try:
        return trainer.run(past)
    except (StoppedError, DivergedError, RewardError, RolloutError, ExtensionError, RecordError) as error:
        raise type(error)(f"{error}; {trainer.checkpoints.keep()}") from error


def _card(config: Config, inputs: Inputs, summary: Summary) -> str:
    """The model card of the adapter that the run writes, with the command of this process."""
    prompts = (len(inputs.prompts.train), len(inputs.prompts.held_out))
    base = identify(config.model.path, inputs.model_path)
    command = shown_command(["python", *sys.orig_argv[1:]])
    return adapter_card(Facts(config, base, summary, command, prompts, package_versions(), inputs.template))


def _where(config: Config, placement: Placement) -> str:
    """The placement in one line."""
    turns = "both stay there" if not config.rollout.sleep else "vLLM sleeps while the learner trains"
    return ", ".join([*placement.lines(), *([turns] if placement.shared else [])])
