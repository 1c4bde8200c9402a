"""Ids of rows. They depend on the words of a row, not on the rendering by a template."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from adagrpo_ray.data.messages import Chat

INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Soft hyphen, zero-width space, word joiner and byte order mark: they are invisible and do not change any letter."""


def normalised(text: str) -> str:
    """Return the text in Unicode's normal form C, without invisible characters, with runs of white space as one space.

    Letter case is kept, since it has a meaning in mathematics and code. Compatibility forms are kept too: a superscript
    2 is not a 2.
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())


def row_id(chat: Chat, ground_truth: str) -> str:
    """Return 16 hex digits of the messages and tools of a row and its ground truth, all normalised.

    The id depends on no setting, model or template, so not on `data.system_prompt` or the rendering.
    """
    parts = [_plain(chat.messages), _plain(chat.tools), normalised(ground_truth)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return the value as JSON values with normalised texts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if isinstance(value, str) or not isinstance(value, bool | int | float | None):
        return normalised(str(value))
    return value
