"""The chat messages of a problem."""

from __future__ import annotations

from adagrpo_ray.config.data import DataSettings
from adagrpo_ray.data.arithmetic import ARITHMETIC, SYSTEM_PROMPT
from adagrpo_ray.errors import ConfigError

Messages = list[dict[str, str]]


def system_message(data: DataSettings) -> str | None:
    """Return the system message of prompts without one: `data.system_prompt`, or that of the embedded task, or None.

    A name of `data.format` in braces is replaced by that marker. Raises ConfigError if braces have other content.
    """
    prompt = data.system_prompt
    if prompt is None and data.source == ARITHMETIC:
        prompt = SYSTEM_PROMPT
    if prompt is None:
        return None
    markers = data.format.model_dump()
    try:
        return prompt.format(**markers)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        names = ", ".join(f"{{{name}}}" for name in markers)
        raise ConfigError(
            f"data.system_prompt={prompt!r} has a placeholder that cannot be filled ({error!r}); "
            f"use {names}, and double any other brace"
        ) from None


def chat_messages(text: str, system: str | None) -> Messages:
    """Return the messages of one question, after the system message if there is one."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": text}]
