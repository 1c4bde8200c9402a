"""Whether a rung of the ladder pays for a difficulty class: whether it succeeds there more often than the base."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BASE = -1
"""The rung of attempts at the base parameters, below the first rung, 0."""


@dataclass(frozen=True)
class RungResults:
    """Newest results of a difficulty class on one rung: discounted numbers of correct and wrong completions.

    The posterior of its success rate there is Beta(1 + correct, 1 + wrong).
    """

    correct: float = 0.0
    wrong: float = 0.0

    def after(self, counts: Sequence[tuple[int, int]], discount: float) -> RungResults:
        """The results after a step with pairs (c, n) of c correct ones of n completions on this rung."""
        correct, completions = sum(c for c, _ in counts), sum(n for _, n in counts)
        return RungResults(discount * self.correct + correct, discount * self.wrong + completions - correct)

    def draw(self, source: random.Random) -> float:
        """A success rate drawn from the posterior."""
        return source.betavariate(1 + self.correct, 1 + self.wrong)


ClassRungs = Mapping[int, RungResults]
"""The results of a class by rung."""


def pays(results: ClassRungs, rung: int, seed: str) -> bool:
    """Whether a group is sampled on a rung, by the results of its class: Thompson sampling, decided by `seed`.

    A rung that succeeds no more often than the base is not worth its tokens: another prompt of the class would do as
    well, with completions that the policy itself has sampled. So a success rate is drawn from the posterior of the rung
    and one from that of the base, and the higher one wins. A rung is used as often as it is likely to be the better
    one, and never given up for good.

    Worked example: without results each is better with probability 1/2. With no success among 24 completions on the
    rung and 4 among 24 at the base, the rung is used in 2 % of all cases.
    """
    source = random.Random(seed)
    return results.get(rung, RungResults()).draw(source) > results.get(BASE, RungResults()).draw(source)
