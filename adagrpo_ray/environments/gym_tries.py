"""Tasks of reasoning-gym in several turns: the task's verifier judges each answer, and the policy may try again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.data.messages import Message
from adagrpo_ray.environments.protocol import Reply
from adagrpo_ray.rewards.gym import reasoning_gym

WRONG = "That is not correct. Try again."
"""The message after a wrong answer."""


class GymTries:
    """An environment for data.source=reasoning_gym.

    The episode ends with a correct answer, whose reward is 1 less `price` for each wrong one before it, or with
    `environment.max_turns` wrong ones. `format` has markers of the answer, as in data.format.
    """

    def __init__(self, price: float = 0.0, format: Mapping[str, str] | None = None) -> None:
        self._price, self._format = price, FormatSettings(**(format or {}))
        self._columns: Mapping[str, Any] = {}
        self._wrong = 0

    def reset(self, row: Mapping[str, Any]) -> None:
        """Begin with the problem of a row."""
        self._columns = row

    def step(self, message: Message) -> Reply:
        """Judge an answer."""
        (score,) = reasoning_gym([message["content"]], format=self._format, columns=self._columns)
        if score >= 1.0:
            return [], 1.0 - self._price * self._wrong, True, {}
        self._wrong += 1
        return [{"role": "user", "content": WRONG}], 0.0, False, {}
