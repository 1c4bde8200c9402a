"""`train`: a run from Python, as `launch/train.py` makes one, with functions of your own as they are."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adagrpo_ray.algorithm import criterion as criteria
from adagrpo_ray.algorithm import own_ladder as ladders
from adagrpo_ray.algorithm.criterion import Criterion
from adagrpo_ray.algorithm.ladder import Ladder
from adagrpo_ray.algorithm.own_ladder import LadderFunction
from adagrpo_ray.config.reading import changed
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.extensions.given import Given, give, name_of
from adagrpo_ray.extensions.loading import check_call
from adagrpo_ray.rewards import registry as rewards
from adagrpo_ray.rewards.registry import RewardFunction
from adagrpo_ray.runs.guarded import Guarded
from adagrpo_ray.runs.observer import Observer, Observers
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.stop import Stop

Callback = Observer
"""Whoever wants to know how a run goes: subclass it, and override what you want to be told."""


def train(
    config: Config,
    *,
    callbacks: Sequence[Callback] = (),
    reward_functions: Sequence[RewardFunction] = (),
    criterion: Criterion | None = None,
    ladder: LadderFunction | type[Ladder] | None = None,
    name: str | None = None,
    resume: Path | str | None = None,
    stop: Stop | None = None,
    progress: bool = True,
) -> Summary:
    """Train as `config` says, to the end, and return what it came to.

    `callbacks` are told of the run, in this process; what one raises ends the run, with a checkpoint.
    Functions of your own go by their names. Those `reward_functions` that `rewards.functions` names count as it says
    there; where it names none of them, they take its place, with a weight of 1 each. `criterion` takes a `Group` and
    says whether it has taught enough; `ladder` takes a failed `Group` and the step, and gives the `SamplingParams` of
    its next attempt or None, or is a subclass of `Ladder`.
    `name` is `run.name`. `resume` is "auto", for the run of that name, a run folder, or a checkpoint's folder. `stop`
    ends the run early once it is set; so do SIGINT (an interrupted cell) and SIGTERM, which raise StoppedError.
    `progress` shows the run on standard output.

    A Ray that this process has called `ray.init` for is where it runs, and stays as it is; else as `run.ray_address`
    says. Raises an AdaGRPOError: ConfigError, DataError, ModelError, RewardError or ResourceError for what can be known
    beforehand; StoppedError, ExtensionError, RewardError and RolloutError with a checkpoint of the last finished step.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"config is {config!r:.300}; make one with Config.load('settings.yaml', {{'run.steps': 20}})")
    for key, given_list in (("callbacks", callbacks), ("reward_functions", reward_functions)):
        if not isinstance(given_list, Sequence):
            raise ConfigError(f"{key} is {given_list!r:.300}; give a list")
    if name is not None:
        config = changed(config, {"run.name": name})
    config, given = _with_functions(config, reward_functions, criterion, ladder)
    if not isinstance(stop, Stop | None):
        raise ConfigError(f"stop is {stop!r:.300}; make one with adagrpo_ray.Stop()")
    for callback in callbacks:
        _check_callback(callback)
    # Not before: these load Ray, torch and what else a run takes.
    from adagrpo_ray.runs.console import Console
    from adagrpo_ray.training.run import run

    stop = Stop() if stop is None else stop
    with ExitStack() as stack:
        shown = [stack.enter_context(Console(config.run.steps))] if progress else []
        stack.enter_context(stop.on_signals())
        told = Observers(*shown, *(Guarded(callback) for callback in callbacks))
        return run(config, told, resume=None if resume is None else str(resume), stop=stop, given=given)


def _check_callback(callback: object) -> None:
    """Raise ConfigError unless each method of a callback can be called with what it is to be told."""
    if not isinstance(callback, Observer):
        raise ConfigError(f"callbacks: {callback!r:.300} is no Callback; give objects of a subclass of Callback")
    for name, method in vars(Observer).items():
        if inspect.isfunction(method):
            _, *arguments = inspect.signature(method).parameters
            check_call(getattr(callback, name), f"callbacks: {type(callback).__name__}.{name}", arguments)


def _with_functions(
    config: Config,
    reward_functions: Sequence[RewardFunction],
    criterion: Criterion | None,
    ladder: LadderFunction | type[Ladder] | None,
) -> tuple[Config, Given]:
    """The configuration, naming the functions, and the functions; ConfigError for one that cannot be given."""
    functions: dict[tuple[str, str], Callable[..., Any]] = {}
    settings: dict[str, object] = {}
    names = [_new_name(function, rewards.SETTING, tuple(rewards.BUILTIN)) for function in reward_functions]
    functions.update(zip([(rewards.SETTING, name) for name in names], reward_functions, strict=True))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"reward_functions: two are called {twice[0]!r}; rename one of them")
    listed = config.rewards.names
    unlisted = [name for name in names if name not in listed]
    if unlisted and unlisted != names:
        raise ConfigError(
            f"{rewards.SETTING} {listed} names some of reward_functions, and not {unlisted}; name all of them there, "
            "each with its weight, or none"
        )
    if unlisted:
        settings[rewards.SETTING] = [{"function": name} for name in names]
    for key, function, built_in in (
        (criteria.SETTING, criterion, criteria.BUILT_IN),
        (ladders.SETTING, ladder, ()),
    ):
        if function is not None:
            if config.algorithm.name != "adagrpo":
                raise ConfigError(
                    f"{key}: {function!r:.300} is for algorithm.name=adagrpo, and algorithm.name="
                    f"{config.algorithm.name} resamples nothing; leave it out, or change the name"
                )
            settings[key] = _new_name(function, key, built_in)
            functions[key, str(settings[key])] = function
    return (changed(config, settings) if settings else config), give(functions)


def _new_name(function: Callable[..., Any], setting: str, built_in: Sequence[str]) -> str:
    name = name_of(function, setting)
    if name in built_in:
        raise ConfigError(f"{setting}: {name!r} is the name of one that is built in; rename yours")
    return name
