"""What a step may still generate."""

from __future__ import annotations

import math


class Budget:
    """What may still be generated in a step, in completions, or in tokens where `price` is those of the longest.

    A completion is paid for before it is sampled, at its highest price, and what it did not need comes back
    after it: so the limit holds whatever lengths turn out. `limit` None: any amount.
    """

    def __init__(self, limit: int | None, price: int = 1) -> None:
        self._left = math.inf if limit is None else limit
        self._price = price

    def take(self, n: int) -> bool:
        """Pay for `n` completions; False, and nothing paid, where fewer are left."""
        if self._left < n * self._price:
            return False
        self._left -= n * self._price
        return True

    def give_back(self, amount: int) -> None:
        """Return what was paid and not used."""
        self._left += amount

    def groups(self, size: int, wanted: int) -> int:
        """How many groups of `size` completions fit, at most `wanted`."""
        return min(wanted, int(min(self._left, wanted * size * self._price)) // (size * self._price))
