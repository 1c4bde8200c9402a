"""Texts with placeholders: names in braces, such as {completion}. Doubled braces stand for braces themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from string import Formatter


def placeholders(template: str) -> tuple[str, ...]:
    """Return the names in braces, in their order. Raises ValueError if braces do not match or hold no plain name."""
    names = []
    for _, name, form, conversion in Formatter().parse(template):
        if name is not None:
            if not name.strip() or form or conversion:
                raise ValueError(f"the braces hold {name + (form or '')!r}")
            names.append(name)
    return tuple(names)


def filled(template: str, values: Mapping[str, object]) -> str:
    """Return the template with values in place of its placeholders; values that are no texts are written as JSON.

    Braces in values are kept as they are. Half surrogates, which UTF-8 cannot encode, become question marks. Raises
    KeyError if a placeholder has no value.
    """
    parts = []
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(literal)
        if name is not None:
            value = values[name]
            parts.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return "".join(parts).encode("utf-8", "replace").decode()
