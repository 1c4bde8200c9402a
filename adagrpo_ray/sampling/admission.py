"""Which groups of a step are resumed or start, and which of their requests are sent, by its places and its budget.

The order of admission does not depend on the order in which requests end. So the same groups are sampled, and the same
requests sent, however long each of them takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.sampling.budget import Budget
from adagrpo_ray.sampling.collection import Failure
from adagrpo_ray.sampling.pilot import Planned
from adagrpo_ray.types import Group


@dataclass(eq=False)
class GroupRun:
    """The state of a group in one step."""

    group: Group
    state: Literal["late", "ready", "exhausted", "waiting", "failed"] = "late"  # "late" until it ends
    next: Planned | None = None  # the request to send next; None while one is in flight
    reserved: int = 0  # completions whose price is reserved for it and that were not sampled yet
    scoring: bool = False  # whether its newest completions are being scored
    history: list[Group] = field(default_factory=list)  # the group after each attempt of this step
    failure: Failure | None = None  # with the message of the first error

    @property
    def in_flight(self) -> bool:
        """Whether its completions are being generated or scored."""
        return self.state == "late" and self.next is None


class Admission:
    """Starts the groups of one step and admits their requests to its budget.

    A group starts as soon as a place of the step is free and the budget has room for it. The order of admission: first
    attempts of this step, in the sequence of the groups, then second attempts in that sequence, and so on. A commit is
    paid for with its pilot, and needs no turn.

    Proof that the order in which requests end does not matter: a request is admitted only if it fits together with all
    that may still become due before it, and refused only if nothing is in flight. Either is also the result if each
    request ends before the next one is considered. There are two exceptions: over-sampling ends a step without the
    groups that take longest, and steps that are collected side by side draw from the same prompts.
    """

    def __init__(
        self,
        runs: list[GroupRun],
        begin: Callable[[float, int], GroupRun | None],
        left_out: Callable[[], int],
        settings: AlgorithmSettings,
        budget: Budget,
        *,
        refill: bool,
    ) -> None:
        """Admit `runs`, and then new groups from `begin`, which are appended.

        `begin` takes the most completions that the group may have, and the places that are left. It returns None if the
        next group has more, or if there is none. `left_out` returns the number of places that no group will fill.
        """
        self._runs, self._begin, self._left_out, self._budget, self._refill = runs, begin, left_out, budget, refill
        self._wanted, self._over_sample = settings.prompts_per_step, settings.over_sample

    @property
    def full(self) -> bool:
        """Whether enough groups have ended, and with them all that an earlier step had to leave behind."""
        return self._missing <= 0 and not any(run.group.late and run.state == "late" for run in self._runs)

    @property
    def _missing(self) -> int:
        """How many places are left. An ended group fills one or, if the method refills, a ready group."""
        counted = sum(run.state == "ready" if self._refill else run.state != "late" for run in self._runs)
        return self._wanted - counted - self._left_out()

    def starting(self) -> Iterator[tuple[GroupRun, Planned]]:
        """Yield the requests that are sent now, with their price reserved; none if the step is full.

        A request that does not fit into the budget waits, with all that follow it, until others end. If none is in
        flight, its group waits for a later step.
        """
        while not self.full and (first := self._first()) is not None:
            run, planned = first
            if not run.reserved:
                if self._budget.take(planned.price, self._due_before(run)):
                    run.reserved = planned.price
                elif self._busy:
                    return
                else:
                    run.state = "waiting"
            run.next = None
            if run.state == "late":
                yield run, planned

    def _first(self) -> tuple[GroupRun, Planned] | None:
        """The request whose turn it is, perhaps of a new group; None if there is none before another one ends."""
        idle = [(run, run.next) for run in self._runs if run.next is not None]
        first = min(idle, key=lambda each: (not each[0].reserved, len(each[0].history)), default=None)
        if first is not None and (first[0].reserved or not first[0].history):
            return first
        missing = self._missing
        places = missing + math.ceil(self._over_sample * missing) - sum(run.state == "late" for run in self._runs)
        if places <= 0:
            return first
        if (new := self._begin(self._budget.room, places)) is None:
            return None if self._busy else first
        self._runs.append(new)
        return self._first()

    @property
    def _busy(self) -> bool:
        """Whether a request is in flight, whose end may make room."""
        return any(run.in_flight for run in self._runs)

    def _due_before(self, run: GroupRun) -> int:
        """The most completions that groups in flight may still request before the turn of `run`.

        Groups that start later do not count: a method that refills has no resamples.
        """
        turn, place = len(run.history), self._runs.index(run)
        return sum(
            other.group.size * max(0, turn - (at > place) - len(other.history))
            for at, other in enumerate(self._runs)
            if other.in_flight
        )


def resumable(
    queue: Sequence[Group], settings: AlgorithmSettings, room: float
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """The groups to resume in a step with room for so many completions, and the groups that keep waiting.

    Late groups come first, as many as fit. Failed groups get half of the places and of the room that they leave, or the
    only place. The places include those that over-sampling adds.
    """
    late, failed = [group for group in queue if group.late], [group for group in queue if not group.late]
    wanted = settings.prompts_per_step
    first = _fitting(late, wanted, room)
    places, left = wanted + math.ceil(settings.over_sample * wanted) - first, room - _size(late[:first])
    half = _fitting(failed, places // 2, left / 2) or _fitting(failed, min(1, places), left)
    return (*late[:first], *failed[:half]), (*late[first:], *failed[half:])


def _fitting(groups: Sequence[Group], places: int, room: float) -> int:
    """How many of the groups, in their order, fit into the places and into room for so many completions."""
    return next((n for n in range(min(places, len(groups)), 0, -1) if _size(groups[:n]) <= room), 0)


def _size(groups: Sequence[Group]) -> int:
    return sum(group.size for group in groups)
