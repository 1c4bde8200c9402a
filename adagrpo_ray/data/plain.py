"""Prompts of plain text, for base models without a chat template (`data.chat_template=none`)."""

from __future__ import annotations

from adagrpo_ray.data.messages import SYSTEM_ROLES, Chat
from adagrpo_ray.errors import DataError


def plain_text(chat: Chat, system: str | None) -> str:
    """Return the text of the chat's only message, after `system` and a blank line if there is one.

    Raises DataError if the chat has more than plain text can show: other messages, tools, or other keys of a message.
    """
    messages = [m for m in chat.messages if m["role"] not in SYSTEM_ROLES or m["content"].strip()]
    roles = ", ".join(str(m["role"]) for m in messages)
    more = sorted({key for m in messages for key in m if key not in ("role", "content")})
    if len(messages) > 1:
        found = f"messages of the roles {roles}"
    elif chat.tools:
        found = "tools"
    elif more:
        found = f"a message with {', '.join(more)}"
    else:
        text = str(messages[0]["content"])
        return text if system is None or not system.strip() else f"{system}\n\n{text}"
    raise DataError(
        f"data.chat_template=none takes prompts of one text, and this one has {found}; give data with one text per "
        "prompt, or a Jinja file as data.chat_template"
    )
