"""The budget of a step, and how many groups fit into the rest of it."""

from __future__ import annotations

import math

from adagrpo_ray.config.algorithm import AlgorithmSettings


class Budget:
    """The budget of one step, in completions or in tokens (`algorithm.budget_unit`).

    A completion is paid for before it is sampled, at the price of the longest one, and the unused part comes back
    after it: so the limit holds whatever the lengths are. Every group counts as one of `group_size` completions, the
    most that a group may have.
    """

    def __init__(self, settings: AlgorithmSettings, group_size: int, max_new_tokens: int) -> None:
        self._left = math.inf if settings.budget is None else settings.budget
        self._in_tokens = settings.budget_unit == "tokens"
        self._price = max_new_tokens if self._in_tokens else 1
        self._group_size, self._over_sample = group_size, settings.over_sample

    def slots(self, wanted: int) -> int:
        """How many groups fit, at most `wanted`."""
        group = self._group_size * self._price
        return min(wanted, int(min(self._left, wanted * group)) // group)

    def places(self, slots: int) -> int:
        """How many groups to sample so that `slots` of them end early: over-sampling adds some, if they fit."""
        return self.slots(slots + math.ceil(self._over_sample * slots))

    def take(self, completions: int) -> bool:
        """Pay for so many completions; False, and nothing paid, if they do not fit."""
        if self._left < completions * self._price:
            return False
        self._left -= completions * self._price
        return True

    def give_back(self, completions: int, tokens: int) -> None:
        """Return the unused part of the price that these completions, of `tokens` in all, have paid."""
        if self._in_tokens:
            self._left += completions * self._price - tokens
