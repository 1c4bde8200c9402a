"""The chat messages that a problem becomes."""

from __future__ import annotations

from adagrpo_ray.config.tree import DataSettings
from adagrpo_ray.errors import ConfigError

Messages = list[dict[str, str]]


def system_message(data: DataSettings) -> str | None:
    """`data.system_prompt` with the markers of `data.format` in place of their names in braces; None where unset.

    Raises ConfigError where the braces hold something else.
    """
    if data.system_prompt is None:
        return None
    markers = data.format.model_dump()
    try:
        return data.system_prompt.format(**markers)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        names = ", ".join(f"{{{name}}}" for name in markers)
        raise ConfigError(
            f"data.system_prompt={data.system_prompt!r} has a placeholder that cannot be filled ({error!r}); "
            f"use {names}, and double any other brace"
        ) from None


def chat_messages(text: str, system: str | None) -> Messages:
    """One question, after the system message where there is one."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": text}]
