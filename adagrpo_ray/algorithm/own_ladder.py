"""A ladder of the user's own: a function of the group and the step, or a subclass of `Ladder`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from adagrpo_ray.algorithm.ladder import Ladder
from adagrpo_ray.config.section import first_problem
from adagrpo_ray.errors import ExtensionError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.extensions.loading import check_call, load_function, told
from adagrpo_ray.types import Group, SamplingParams

LadderFunction = Callable[[Group, int], SamplingParams | None]
"""Parameters of the next attempt of a group that failed so far, at a step; None: it is given up."""

SETTING = "algorithm.ladder"
"""Names the ladder."""

MOST_RESAMPLES = 64
"""Of a group, with a ladder of the user's own: one without an end would sample a hopeless group for ever."""


@dataclass(frozen=True, kw_only=True)
class OwnLadder(Ladder):
    """Asks `ladder`, which is `name` in the configuration, and checks its answers.

    Raises ExtensionError, which names it, if it raises or gives parameters that nothing can be sampled with.
    """

    ladder: LadderFunction
    name: str

    def next(self, group: Group, step: int) -> SamplingParams | None:
        """Parameters of the group's next attempt at `step`; None if it has none left."""
        if len(group.attempts) > MOST_RESAMPLES:
            return None
        try:
            params: object = self.ladder(group, step)
        except ValidationError as error:
            raise ExtensionError(f"{SETTING}: {self.name!r} made parameters with {first_problem(error)}") from error
        except BaseException as error:  # SystemExit too: it would end the thread that all sampling runs in
            raise ExtensionError(f"{SETTING}: {self.name!r} raised {told(error)}; mend it") from error
        if params is None:
            return None if group.attempts else self.base
        if not isinstance(params, SamplingParams):
            raise ExtensionError(
                f"{SETTING}: {self.name!r} returned {params!r:.300}; have it return SamplingParams, or None where the "
                "group is to be given up"
            )
        self._check(params)
        return params

    def _check(self, params: SamplingParams) -> None:
        """Raise ExtensionError unless they are as the configuration's have to be."""
        problem = "a temperature of 0 draws the same completion again" if params.temperature == 0.0 else None
        try:
            SamplingParams(**params.model_dump())  # pydantic's `model_copy` lets anything through
        except ValidationError as error:
            problem = first_problem(error)
        if problem is not None:
            raise ExtensionError(f"{SETTING}: {self.name!r} returned {params}; {problem}")


def load_ladder(name: str, triggers: Ladder, given: Given = NOTHING) -> Ladder:
    """The user's own ladder of that name: 'module:function', or one that was given.

    A function is asked after each failed attempt; the first one has the parameters of `triggers`, the configuration's
    ladder. A subclass of Ladder is made with those, and asked for first attempts too. Raises ConfigError if there
    is none of that name or it cannot be called with a group and a step, ExtensionError if the class cannot be made.
    """
    own = load_function(name, SETTING, (), given)
    what, arguments = f"{SETTING}: {name!r}", ["group", "step"]
    if not isinstance(own, type):
        check_call(own, what, arguments)
        return OwnLadder(
            triggers.base, ladder=lambda group, step: own(group, step) if group.attempts else triggers.base, name=name
        )
    if not issubclass(own, Ladder):
        raise ExtensionError(f"{what} is a class that is no Ladder; subclass adagrpo_ray.Ladder")
    try:
        made: Ladder = own(triggers.base, triggers.triggers)
    except Exception as error:
        raise ExtensionError(f"{SETTING}: making {name!r} raised {told(error)}; mend it") from error
    check_call(made.next, f"{what}: its method next", arguments)
    return OwnLadder(made.base, made.triggers, ladder=made.next, name=name)
