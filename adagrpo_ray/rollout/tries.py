"""How often a request may be sent, and the prompts that are given up because they lose rollout actors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

from adagrpo_ray.errors import RequestLostError


class Tries:
    """The tries of a request, each with a limit of sequences in flight on the member that gets it.

    The prompt of a request may be the reason why a member is lost. A request that has lost two members is sent again
    next to few others, and then alone. If it loses that member, too, its prompt is given up.
    """

    def __init__(self, limit: int, notify: Callable[[str], None]) -> None:
        """`limit` is that of other requests; `notify` gets a line for each prompt that is given up."""
        self.limits = (limit, limit, math.isqrt(limit), 1)
        self._notify = notify
        self._given_up: dict[str, str] = {}  # prompt id -> the reason

    def check(self, prompt: str) -> None:
        """Raise RequestLostError if the prompt is given up."""
        if prompt in self._given_up:
            raise RequestLostError(self._given_up[prompt])

    def forget(self) -> None:
        """Allow the prompts again that are given up."""
        self._given_up.clear()

    def give_up(self, prompt: str, reason: str) -> NoReturn:
        """Give up the prompt, whose last try lost its member for that reason. Raises RequestLostError."""
        self.check(prompt)
        self._given_up[prompt] = (
            f"prompt {prompt} is given up: {len(self.limits)} rollout actors were lost while they ran it, the "
            f"last one without other requests ({reason}); leave it out of the data"
        )
        self._notify(self._given_up[prompt])
        raise RequestLostError(self._given_up[prompt])
