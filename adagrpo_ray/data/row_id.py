"""What makes two rows the same: the words of the row, and not how a template renders them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from adagrpo_ray.data.messages import Chat

INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Soft hyphen, zero-width space, word joiner and byte order mark: they are never seen and join or part no letters."""


def normalised(text: str) -> str:
    """The text in Unicode's normal form C, each run of white space one space, without invisible characters.

    Letter case stays, since it carries meaning in mathematics and code; so do compatibility forms (a superscript 2 is
    not a 2).
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())


def row_id(chat: Chat, ground_truth: str) -> str:
    """16 hex digits of the messages and tools of a row and its ground truth, normalised.

    It depends on no setting, model or template: neither `data.system_prompt` nor the rendering counts.
    """
    parts = [_plain(chat.messages), _plain(chat.tools), normalised(ground_truth)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """As JSON values, with normalised texts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if isinstance(value, str) or not isinstance(value, bool | int | float | None):
        return normalised(str(value))
    return value
