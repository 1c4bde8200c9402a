"""Selecting the chat template of `data.chat_template`: that of the tokenizer, of a file, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adagrpo_ray.config.data import PLAIN, DataSettings
from adagrpo_ray.data.template import without_own_tags
from adagrpo_ray.errors import ConfigError

LONGEST = 2**20
"""Most bytes of a template; the longest templates of real models have 20,000."""
TEMPLATE_FILE = "chat_template.jinja"
"""Name of the template in the folder of a model or adapter, as in Transformers."""


def chosen_template(data: DataSettings) -> str | None:
    """Return the text of the file that `data.chat_template` names; None for the tokenizer's own, "" for plain text.

    Raises ConfigError if the file cannot be read or is no Jinja template.
    """
    name = data.chat_template
    if name is None:
        return None
    if name == PLAIN:
        return ""
    setting = f"data.chat_template={name!r}"
    try:
        with Path(name).open("rb") as content:
            read = content.read(LONGEST + 1)
        text = read.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{setting} cannot be read ({reason}); give a Jinja file in UTF-8, {PLAIN} for prompts of plain text, or "
            "null for the tokenizer's own template"
        ) from None
    if len(read) > LONGEST or not text.strip():
        raise ConfigError(f"{setting} is {'empty' if not text.strip() else 'too long'}; give a chat template")
    _check(text, setting)
    return text


def use_template(tokenizer: Any, chosen: str | None) -> None:
    """Set the tokenizer's template to a result of `chosen_template`. With "" it gets none and refuses to render."""
    if chosen is not None:
        tokenizer.chat_template = chosen or None


def _check(text: str, setting: str) -> None:
    from jinja2 import Environment, TemplateError, TemplateSyntaxError

    try:
        Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(without_own_tags(text))
    except TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ConfigError(f"{setting} is no Jinja template ({error.message}{line}); correct it") from None
