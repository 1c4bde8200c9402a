"""The groups of one step, by how they ended."""

from __future__ import annotations

from dataclasses import dataclass

from adagrpo_ray.types import Group


@dataclass(frozen=True, eq=False)
class Failure:
    """A group that could not be scored: as it was before, and the first `error`.

    If it was `dropped`, the `tokens` generated for it are lost; else it continued with `rewards.error_score`.
    """

    group: Group
    tokens: int
    dropped: bool
    error: str


@dataclass(frozen=True, eq=False)
class Collection:
    """The groups of one step, by how they ended.

    `ready` groups met the criterion; `exhausted` ones failed on the last rung; `waiting` ones continue
    in a later step, with the `late` ones that this step ended without; `aged` ones were given up because
    they waited too long; `failed` ones could not be scored. `attempts` are all that this step sampled and scored,
    with the group as it was after each.
    """

    ready: tuple[Group, ...]
    exhausted: tuple[Group, ...]
    waiting: tuple[Group, ...]
    late: tuple[Group, ...]
    aged: tuple[Group, ...]
    failed: tuple[Failure, ...]
    attempts: tuple[Group, ...]
