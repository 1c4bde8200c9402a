"""Lists of the settings for readers: every key with its default and its description."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from adagrpo_ray.config.reading import DECIDED
from adagrpo_ray.config.tree import Config
from adagrpo_ray.config.yaml_text import dump


def settings(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, description) of every setting; entries of lists have `[]` in their key."""
    for name, field in section.model_fields.items():
        key, annotation = f"{prefix}{name}", field.annotation
        inner = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        if inner is not None:
            yield from settings(inner, f"{key}.")
            continue
        yield key, "required" if field.is_required() else _shown(field.default), field.description or ""
        for entry in get_args(annotation):
            if isinstance(entry, type) and issubclass(entry, BaseModel):
                yield from settings(entry, f"{key}[]." if get_origin(annotation) is tuple else f"{key}.")


def as_markdown() -> str:
    """Return a page in Markdown with the description and a table of the settings of each section."""
    lines = ["# Every setting", "", "As a key of a YAML file, or as `key=value` on the command line.", ""]
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        about = inspect.cleandoc(section.__doc__ or "")
        lines += [f"## {name}", "", about, "", "| key | default | description |", "| --- | --- | --- |"]
        for key, default, text in settings(section, f"{name}."):
            lines.append(f"| `{key}` | `{default}` | {text.replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join(lines)


def as_yaml(config: Config, decided: Mapping[str, object] | None = None) -> str:
    """Return the configuration as YAML that `Config.load` reads back.

    `decided` has the settings that were null until the run decided them, by dotted key, with their values. They are
    read back as null.
    """
    tree = config.model_dump(mode="json") | ({DECIDED: dict(decided)} if decided else {})
    return dump(tree, sort_keys=False, width=110)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a tree with its dotted key; lists are values, and an empty mapping has none."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        value = [v.model_dump() if isinstance(v, BaseModel) else v for v in value]
    if isinstance(value, BaseModel):
        value = value.model_dump()
    return dump(value, default_flow_style=True, width=10_000).strip().removesuffix("\n...").strip()
