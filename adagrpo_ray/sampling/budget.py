"""The budget of a step, and the number of completions that still fit into it."""

from __future__ import annotations

import math

from adagrpo_ray.config.algorithm import AlgorithmSettings


class Budget:
    """The budget of one step, in completions or in tokens (`algorithm.budget_unit`).

    Before a completion is sampled, the price of the longest possible one is reserved; the unused part is returned
    afterwards. So a step never exceeds the limit.
    """

    def __init__(self, settings: AlgorithmSettings, max_new_tokens: int) -> None:
        self._left = math.inf if settings.budget is None else settings.budget
        self._in_tokens = settings.budget_unit == "tokens"
        self._price = max_new_tokens if self._in_tokens else 1

    @property
    def room(self) -> float:
        """How many completions still fit; infinite without a limit."""
        return self._left / self._price

    def take(self, completions: int, spare: int = 0) -> bool:
        """Reserve the price of so many completions.

        Returns False and reserves nothing if they and `spare` more do not fit.
        """
        if self._left < (completions + spare) * self._price:
            return False
        self._left -= completions * self._price
        return True

    def give_back(self, completions: int, tokens: int) -> None:
        """Return the unused part of the reserved price of completions that have `tokens` tokens together."""
        if self._in_tokens:
            self._left += completions * self._price - tokens

    def release(self, completions: int) -> None:
        """Return the reserved price of completions that were not sampled."""
        self._left += completions * self._price
