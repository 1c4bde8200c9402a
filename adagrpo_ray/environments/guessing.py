"""A guessing game: the policy guesses a hidden item of an ordered range, and hears on which side of the guess it is.

Halving the range finds any of 15 items in 4 guesses; random guesses find few.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from adagrpo_ray.data.messages import Message
from adagrpo_ray.environments.protocol import Reply
from adagrpo_ray.toy.turn_examples import AFTER, BEFORE, GAMES, LETTERS, NO_GUESS, questions

LOWER, HIGHER, NO_NUMBER = "It is lower.", "It is higher.", "Guess a number."
"""Observations for numbers."""
NUMBER_QUESTION = "I think of a number from 1 to {}. Guess it."


class Guessing:
    """The game with letters from a to o, or with numbers from 1 to `largest`; the reward is 1 for a correct guess.

    `environment.max_turns` is the number of guesses. With numbers a prompt shows a game first, for models that do not
    know it.
    """

    def __init__(self, items: Literal["letters", "numbers"] = "letters", largest: int = 15, seed: int = 0) -> None:
        self._letters, self._largest, self._seed = items == "letters", largest, seed
        self._hidden = 0

    def rows(self) -> list[dict[str, Any]]:
        """Return games with letters, or a row for each number after each game that a prompt can show."""
        if self._letters:
            return [
                {"prompt": question, "answer": letter, "item": question}
                for question, letter in questions(GAMES, self._seed)
            ]
        return [
            {"prompt": self._shown(other), "answer": str(hidden), "item": f"{hidden} after {other}"}
            for hidden in range(1, self._largest + 1)
            for other in range(1, self._largest + 1)
            if other != hidden
        ]

    def reset(self, row: Mapping[str, Any]) -> None:
        """Hide the item of a row."""
        answer = str(row["answer"])
        self._hidden = LETTERS.index(answer) if self._letters else int(answer)

    def step(self, message: Message) -> Reply:
        """Take a guess: the first letter or number of the turn."""
        found = re.search(r"[a-o]" if self._letters else r"\d+", message["content"])
        if found is None:
            return [_user(NO_GUESS if self._letters else NO_NUMBER)], 0.0, False, {}
        guess = LETTERS.index(found[0]) if self._letters else int(found[0][:6])
        if guess == self._hidden:
            return [], 1.0, True, {}
        return [_user(self._side(guess, self._hidden))], 0.0, False, {}

    def _side(self, guess: int, hidden: int) -> str:
        if self._letters:
            return BEFORE if hidden < guess else AFTER
        return LOWER if hidden < guess else HIGHER

    def _shown(self, hidden: int) -> list[Message]:
        """Return the messages of a game that halves the range until it finds `hidden`, and the question after it."""
        question = _user(NUMBER_QUESTION.format(self._largest))
        messages, low, high, guess = [question], 1, self._largest, 0
        while guess != hidden:
            guess = (low + high) // 2
            messages.append({"role": "assistant", "content": str(guess)})
            if guess != hidden:
                messages.append(_user(self._side(guess, hidden)))
                low, high = (low, guess - 1) if hidden < guess else (guess + 1, high)
        return [*messages, question]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
