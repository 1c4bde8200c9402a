"""`train`: a run from Python, like `launch/train.py`, with your own functions passed as objects."""

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
from adagrpo_ray.config import environments
from adagrpo_ray.config.reading import changed
from adagrpo_ray.config.tree import Config
from adagrpo_ray.environments.protocol import Environment
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.extensions.given import Given, give, name_of
from adagrpo_ray.extensions.loading import check_call
from adagrpo_ray.rewards import registry as rewards
from adagrpo_ray.rewards.registry import RewardFunction
from adagrpo_ray.runs.observer import Guarded, Observer, Observers
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.stop import Stop

Callback = Observer
"""Base class of callbacks: override the methods of the events that you want to receive."""


def train(
    config: Config,
    *,
    callbacks: Sequence[Callback] = (),
    reward_functions: Sequence[RewardFunction] = (),
    criterion: Criterion | None = None,
    ladder: LadderFunction | type[Ladder] | None = None,
    environment: Callable[..., Environment] | None = None,
    tools: Sequence[Callable[..., Any]] = (),
    name: str | None = None,
    resume: Path | str | None = None,
    stop: Stop | None = None,
    progress: bool = True,
) -> Summary:
    """Train with the settings of `config` and return the summary of the run.

    - `callbacks` receive the events of the run, in this process. An error in one ends the run, with a checkpoint.
    - `reward_functions`, `criterion` and `ladder` are your own functions, used under their names.
    - `reward_functions` have the weights that `rewards.functions` gives them. If it names none of them, they replace
      it, with a weight of 1 each.
    - `criterion` takes a `Group` and returns whether the group needs no further attempt.
    - `ladder` takes a failed `Group` and the step. It returns the `SamplingParams` of the next attempt, or None to give
      the group up. A subclass of `Ladder` is possible, too.
    - `environment` is a class with `reset` and `step`, or a function that makes its objects. `tools` are functions that
      the policy may call; they replace `environment.tools`.
    - `name` replaces `run.name`.
    - `resume` is "auto" for the run of that name, or the path of a run folder or of a checkpoint.
    - `stop` ends the run early once it is set. SIGINT (an interrupted cell) and SIGTERM do so, too, and raise
      StoppedError.
    - `progress` shows the run on standard output.

    If this process has called `ray.init`, the run uses that Ray and leaves it running. Otherwise `run.ray_address`
    selects the Ray.

    Every error is an AdaGRPOError. Raises ConfigError, DataError, ModelError, RewardError or ResourceError for problems
    that are found before the start. Raises StoppedError, ExtensionError, RewardError or RolloutError after writing a
    checkpoint of the last finished step.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"config is {config!r:.300}; make one with Config.load('settings.yaml', {{'run.steps': 20}})")
    for key, given_list in (("callbacks", callbacks), ("reward_functions", reward_functions), ("tools", tools)):
        if not isinstance(given_list, Sequence):
            raise ConfigError(f"{key} is {given_list!r:.300}; give a list")
    if name is not None:
        config = changed(config, {"run.name": name})
    config, given = _with_functions(config, reward_functions, criterion, ladder, environment, tools)
    if not isinstance(stop, Stop | None):
        raise ConfigError(f"stop is {stop!r:.300}; make one with adagrpo_ray.Stop()")
    for callback in callbacks:
        _check_callback(callback)
    # Not at the top: these load Ray, torch and all else that a run needs.
    from adagrpo_ray.runs.console import Console
    from adagrpo_ray.training.run import run

    stop = Stop() if stop is None else stop
    with ExitStack() as stack:
        shown = [stack.enter_context(Console(config.run.steps))] if progress else []
        stack.enter_context(stop.on_signals())
        observers = Observers(*shown, *(Guarded(callback) for callback in callbacks))
        return run(config, observers, resume=None if resume is None else str(resume), stop=stop, given=given)


def _check_callback(callback: object) -> None:
    """Raise ConfigError unless each method of a callback can be called with the arguments of its event."""
    if not isinstance(callback, Observer):
        raise ConfigError(f"callbacks: {callback!r:.300} is not a Callback; give objects of a subclass of Callback")
    for name, method in vars(Observer).items():
        if inspect.isfunction(method):
            _, *arguments = inspect.signature(method).parameters
            check_call(getattr(callback, name), f"callbacks: {type(callback).__name__}.{name}", arguments)


def _with_functions(
    config: Config,
    reward_functions: Sequence[RewardFunction],
    criterion: Criterion | None,
    ladder: LadderFunction | type[Ladder] | None,
    environment: Callable[..., Environment] | None,
    tools: Sequence[Callable[..., Any]],
) -> tuple[Config, Given]:
    """The configuration with the names of the functions, and the functions.

    Raises ConfigError if a function cannot be used.
    """
    functions: dict[tuple[str, str], Callable[..., Any]] = {}
    settings: dict[str, object] = {}
    names = [_new_name(function, rewards.SETTING, tuple(rewards.BUILTIN)) for function in reward_functions]
    functions.update(zip([(rewards.SETTING, name) for name in names], reward_functions, strict=True))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"reward_functions: two have the name {twice[0]!r}; rename one of them")
    listed = [reward.name for reward in config.rewards.own]
    unlisted = [name for name in names if name not in listed]
    if unlisted and unlisted != names:
        raise ConfigError(
            f"{rewards.SETTING} {listed} names some of reward_functions, but not {unlisted}; name all of them there, "
            "each with its weight, or none of them"
        )
    if unlisted and config.rewards.served:
        raise ConfigError(
            f"{rewards.SETTING} has {', '.join(model.name for model in config.rewards.served)} and none of "
            f"reward_functions {unlisted}, which would replace the list; name them there too, each with its weight"
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
                    f"{key}: {function!r:.300} needs algorithm.name=adagrpo, and algorithm.name="
                    f"{config.algorithm.name} does not resample; leave it out, or change algorithm.name"
                )
            settings[key] = _new_name(function, key, built_in)
            functions[key, str(settings[key])] = function
    if environment is not None:
        settings[environments.NAME] = _new_name(environment, environments.NAME, ())
        functions[environments.NAME, str(settings[environments.NAME])] = environment
    tool_names = [_new_name(tool, environments.TOOLS, ()) for tool in tools]
    if tool_names:
        settings[environments.TOOLS] = tool_names
        functions.update(zip([(environments.TOOLS, tool) for tool in tool_names], tools, strict=True))
    return (changed(config, settings) if settings else config), give(functions)


def _new_name(function: Callable[..., Any], setting: str, built_in: Sequence[str]) -> str:
    name = name_of(function, setting)
    if name in built_in:
        raise ConfigError(f"{setting}: {name!r} is the name of a built-in one; rename yours")
    return name
