"""The protocol of an environment, and the checks of its replies.

An environment is an object of your own class. One is made for each episode, in a process outside the learner:

    class Guess:
        def reset(self, row): ...            # the messages of the prompt, or None for those of the row
        def step(self, message): ...         # (messages, reward, done, info)

`reset` and `step` may be coroutine functions. A `reset` with a parameter `seed` gets the seed of the prompt, which is
the same for all its episodes: with the row it is the only source of randomness, so that an episode can be repeated.
These members are optional:

- `tools`: functions that the policy may call, which are run for the environment; or schemas of tools, whose calls the
  environment gets in the message.
- `rows()`: the rows of its data, for data.source=environment.
- `end()`: the reward of an episode that a limit ended, and which gets no further `step`.
- `close()`: frees its resources.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from adagrpo_ray.data.messages import ROLES, Message
from adagrpo_ray.errors import ExtensionError

Reply = tuple[Sequence[Message], float, bool, Mapping[str, Any]]
"""A result of `step`: (messages, reward, done, info)."""


class Environment(Protocol):
    """One episode; see the module for its optional members."""

    def reset(self, row: Mapping[str, Any]) -> Any:
        """Begin the episode; returns the messages of the prompt, or None for those of the row.

        `row` has the columns of the prompt and, unless a column has that name, `problem` (the last message of the user)
        and `answer` (the ground truth). The messages must be the same for every episode of the row. With a coroutine
        function the result is awaited.
        """

    def step(self, message: Message) -> Any:
        """Take a turn of the policy; returns (messages, reward, done, info).

        - `message` has the `content` that the policy wrote and, if it wrote tool calls, `tool_calls` with the name and
          the arguments of each `function`.
        - The returned messages have the role user or tool; a text is a message of the user. If the episode is `done`,
          they are not used.
        - `info` may have `tool` (the name of the tool that was used) and `error` (a message), both for people to read.
        """


@dataclass(frozen=True)
class StepResult:
    """A checked result of `step`."""

    messages: tuple[Message, ...]
    reward: float
    done: bool
    tool: str = ""
    error: str = ""


def check_class(made: object, name: str) -> None:
    """Raise ExtensionError, which calls the environment `name`, unless it has `reset` and `step`."""
    for method in ("reset", "step"):
        if not callable(getattr(made, method, None)):
            raise ExtensionError(
                f"environment.name: {name!r} makes a {type(made).__name__}, which has no method {method}; give a class "
                "with reset(row) and step(message)"
            )


def takes_seed(reset: Callable[..., Any]) -> bool:
    """Return whether a `reset` has a parameter `seed`."""
    try:
        return "seed" in inspect.signature(reset).parameters
    except (TypeError, ValueError):
        return False


def opening_messages(returned: Any) -> tuple[Message, ...] | None:
    """Return the messages of a result of `reset`; None for those of the row. Raises ExtensionError for others."""
    if returned is None:
        return None
    messages = _messages(returned, "reset", ROLES)
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise ExtensionError(f"reset returned {_short(returned)}; return messages with one of the user, or None")
    return messages


def step_result(returned: Any) -> StepResult:
    """Return the result of `step`, checked. Raises ExtensionError if it is not one."""
    if not isinstance(returned, tuple | list) or len(returned) != 4:
        raise ExtensionError(f"step returned {_short(returned)}; return (messages, reward, done, info)")
    messages, reward, done, info = returned
    if type(done).__name__ not in ("bool", "bool_"):  # that of Python or of numpy
        raise ExtensionError(f"step returned the value {_short(done)} for done; return True or False")
    more = dict(info) if isinstance(info, Mapping) else {}
    return StepResult(
        messages=() if done else _messages(messages, "step", ("user", "tool")),
        reward=checked_reward(reward, "step"),
        done=bool(done),
        tool=str(more.get("tool") or ""),
        error=str(more.get("error") or ""),
    )


def checked_reward(value: Any, method: str) -> float:
    """Return a reward as a float, 0.0 for None. Raises ExtensionError unless it is a finite number."""
    if value is None:
        return 0.0
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    raise ExtensionError(f"{method} returned the reward {_short(value)}; return a finite number")


def _messages(value: Any, method: str, roles: Sequence[str]) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list | tuple) or not listed:
        raise ExtensionError(f"{method} returned {_short(value)} as messages; return a text or a list of messages")
    return tuple(_message(each, method, roles) for each in listed)


def _message(value: Any, method: str, roles: Sequence[str]) -> Message:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, Mapping) else (None, None)
    if role not in roles or not isinstance(content, str):
        raise ExtensionError(
            f"{method} returned the message {_short(value)}; give a role ({', '.join(roles)}) and a text as content"
        )
    return dict(value)


def _short(value: object) -> str:
    try:
        return f"{value!r:.200}"
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"
