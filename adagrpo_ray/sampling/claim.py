"""The groups that the sampling of one step takes: waiting groups from the queue, and new ones from the prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from adagrpo_ray.sampling.allocator import Allocator, Position
from adagrpo_ray.types import Group

MOST_DRAWN = 10  # new prompts for each place of a step, if no budget ends it before


@dataclass(frozen=True)
class Queue:
    """The state that a collection changes before it ends: the place in the prompts, and the waiting groups."""

    position: Position
    waiting: tuple[Group, ...]


@dataclass(frozen=True, eq=False)
class Claim:
    """The groups that the collection of a step has taken from the queue and from the prompts.

    - `allocator`: draws the new groups.
    - `step`: the step, counted from 1.
    - `places`: the number of groups of a step.
    - `before`: the queue before the collection.
    - `number`: the number of the collection, from 1.
    - `alone`: whether no other collection was in flight.
    - `aged`: groups that are too old.
    - `resumed`: groups to resume in this step.
    - `new`: groups of new prompts, added as they are drawn.
    """

    allocator: Allocator
    step: int
    places: int
    before: Queue
    number: int
    alone: bool
    aged: tuple[Group, ...]
    resumed: tuple[Group, ...]
    new: list[Group] = field(default_factory=list)

    def draw(self, most: float, places: int) -> Group | None:
        """Draw the next prompt as a new group, which has at most `most` completions and one of the `places` left.

        Returns None if it would be larger, if prompts that are left out take all places, or if the step has drawn too
        many prompts. The first group of a step is drawn in any case, so that no step is empty.
        """
        if len(self.new) >= MOST_DRAWN * self.places:
            return None
        needed = not (self.resumed or self.new)
        if (group := self.allocator.draw(self.step, most, places, needed=needed)) is not None:
            self.new.append(group)
        return group

    def left_out(self) -> int:
        """The number of places that no group will fill, since prompts are left out and not replaced.

        At least one place has a group, for which more prompts than places may have been left out.
        """
        return min(self.allocator.places_left_out(self.step), self.places - 1)

    def returned(self) -> Iterator[Group]:
        """Yield all of its groups in their state before the collection; new ones are late, so that they go first."""
        yield from (*self.aged, *self.resumed, *(replace(group, late=True) for group in self.new))
