"""A ladder of the user's own: a function of the group and the step, or a subclass of `Ladder`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from adagrpo_ray.algorithm.ladder import Ladder
from adagrpo_ray.config.refusals import explain
from adagrpo_ray.errors import ExtensionError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.extensions.loading import check_call, describe_error, load_function
from adagrpo_ray.types import Group, SamplingParams

LadderFunction = Callable[[Group, int], SamplingParams | None]
"""From a group that failed so far and the step to the parameters of its next attempt; None gives the group up."""

SETTING = "algorithm.ladder"
"""The setting that names the ladder."""

MOST_RESAMPLES = 64
"""The most resamples of a group on a ladder of the user's own, which might never end."""


@dataclass(frozen=True, kw_only=True)
class OwnLadder(Ladder):
    """Calls `ladder`, which the configuration names `name`, and checks its results."""

    ladder: LadderFunction
    name: str

    def next(self, group: Group, step: int) -> SamplingParams | None:
        """Parameters of the next attempt of `group` at `step`; None if there is none.

        Raises ExtensionError if the ladder raises an error or returns parameters that cannot be used.
        """
        if len(group.attempts) > MOST_RESAMPLES:
            return None
        try:
            params: object = self.ladder(group, step)
        except ValidationError as error:
            raise ExtensionError(f"{SETTING}: {self.name!r} made parameters with {_problem(error)}") from error
        except BaseException as error:  # SystemExit too: it would end the thread that all sampling runs in
            raise ExtensionError(f"{SETTING}: {self.name!r} raised {describe_error(error)}; fix it") from error
        if params is None:
            return None if group.attempts else self.base
        if not isinstance(params, SamplingParams):
            raise ExtensionError(
                f"{SETTING}: {self.name!r} returned {params!r:.300}; have it return SamplingParams, or None to give "
                "the group up"
            )
        self._check(params)
        return params

    def _check(self, params: SamplingParams) -> None:
        """Raise ExtensionError unless the parameters are valid in the configuration, too."""
        problem = "a temperature of 0 draws the same completion again" if params.temperature == 0.0 else None
        try:
            SamplingParams(**params.model_dump())  # pydantic's `model_copy` lets anything through
        except ValidationError as error:
            problem = _problem(error)
        if problem is not None:
            raise ExtensionError(f"{SETTING}: {self.name!r} returned {params}; {problem}")


def _problem(error: ValidationError) -> str:
    return explain(error.errors()[0], SamplingParams)


def load_ladder(name: str, triggers: Ladder, given: Given = NOTHING) -> Ladder:
    """Load the user's own ladder `name`: 'module:function', or the name of a function or class in `given`.

    `triggers` is the ladder of the configuration. A function is called after each failed attempt, and first attempts
    have the parameters of `triggers`. A subclass of Ladder is constructed with the base and the triggers of `triggers`,
    and decides about first attempts, too.

    Raises ConfigError if there is no such ladder or it cannot be called with a group and a step. Raises ExtensionError
    if the class is not a Ladder or cannot be constructed.
    """
    own = load_function(name, SETTING, (), given)
    prefix, arguments = f"{SETTING}: {name!r}", ["group", "step"]
    if not isinstance(own, type):
        check_call(own, prefix, arguments)
        return OwnLadder(
            triggers.base, ladder=lambda group, step: own(group, step) if group.attempts else triggers.base, name=name
        )
    if not issubclass(own, Ladder):
        raise ExtensionError(f"{prefix} is a class, but not a Ladder; subclass adagrpo_ray.Ladder")
    try:
        made: Ladder = own(triggers.base, triggers.triggers)
    except Exception as error:
        raise ExtensionError(f"{SETTING}: constructing {name!r} raised {describe_error(error)}; fix it") from error
    check_call(made.next, f"{prefix}: its method next", arguments)
    return OwnLadder(made.base, made.triggers, ladder=made.next, name=name)
