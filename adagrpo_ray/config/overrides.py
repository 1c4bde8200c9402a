"""Overrides of settings by dotted keys, applied to the tree of a file before its validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from adagrpo_ray.config.refusals import shown
from adagrpo_ray.config.secrets import hidden
from adagrpo_ray.config.section import Section, section_of
from adagrpo_ray.config.yaml_text import Plain, parse
from adagrpo_ray.errors import ConfigError

Root = type[Section]
"""The class of the whole tree, which defines its sections and defaults."""


def override(root: Root, tree: dict[str, Any], overrides: Sequence[str] | Mapping[str, object]) -> None:
    """Change `tree`, the settings of `root` as a file has them, by overrides in the forms of `read_settings`.

    Raises ConfigError if an override cannot be read, or if its key leads through a value that is no section, mapping
    or list.
    """
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            if not isinstance(key, str) or not all(key.strip().split(".")):
                raise ConfigError(f"overrides have the key {key!r}; give dotted keys, as in 'learner.learning_rate'")
            _set(root, tree, key, _keyed(value), f"{key}={shown(value)}")
        return
    for text in overrides:
        key, value = _read(text)
        _set(root, tree, key, value, text)


def _read(override: str) -> tuple[str, Any]:
    """Return key and value of one "dotted.key=value"."""
    key, equals, text = override.partition("=")
    quoted = hidden(repr(override))
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"cannot read the override {quoted}; write key=value, as in learner.learning_rate=1e-4")
    key = key.strip()
    if not text.strip():
        raise ConfigError(
            f"the override {quoted} has no value; write {key}=null for none, {key}='\"\"' for an empty text"
        )
    return key, parse(text, f"the value of {key}")


def _keyed(value: object) -> object:
    """Return a Python value with the keys of its mappings as text, as those of YAML are here."""
    if isinstance(value, Mapping):
        texts = {str(key) for key in value if isinstance(key, str)}
        return {
            str(key) if isinstance(key, int) and str(key) not in texts else key: _keyed(inner)
            for key, inner in value.items()
        }
    return [_keyed(inner) for inner in value] if isinstance(value, list | tuple) else value


def _set(root: Root, tree: dict[str, Any], key: str, value: Any, written: str) -> None:
    """Set `key` to `value` and create mappings on the way; errors quote the override as `written`."""
    names, quoted = key.strip().split("."), hidden(repr(written))
    node: Any = tree
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        if isinstance(node, list):
            if not (name.isascii() and name.isdecimal()) or int(name) >= len(node):
                there = f"none of its numbers 0 to {len(node) - 1}" if node else "no number of an empty list"
                listed = f"{'.'.join(names[:depth])} is a list of {len(node)}"
                raise ConfigError(f"{quoted}: {listed}; {name!r} is {there}")
            index: Any = int(name)
        elif isinstance(node, dict):
            index = name
        else:
            there = f"{'.'.join(names[:depth])} is the value {shown(node)}"
            raise ConfigError(f"{quoted}: {there} and has no {name!r}")
        if last:
            before = node[index] if isinstance(node, list) else node.get(index)
            node[index] = _merged(root, before, value, tuple(names))
        else:
            given = isinstance(node, list) or index in node
            node[index] = _opened(node[index] if given else _default(root, names[: depth + 1]))
            node = node[index]


def _default(root: Root, place: Sequence[str]) -> Any:
    """Return the default of the setting at `place`; None if there is no such setting."""
    value: Any = root().model_dump(mode="json")
    for part in place:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _opened(inner: Any) -> Any:
    """Return the value that an override changes a part of: {} for null, a mapping for a Python section."""
    if isinstance(inner, BaseModel):
        return inner.model_dump(mode="json")
    return {} if inner is None or (isinstance(inner, Plain) and inner.is_null) else inner


def _merged(root: Root, before: Any, value: Any, place: tuple[str, ...]) -> Any:
    """Return `value`; a mapping for a section is merged into the section `before`, as are sections in it."""
    if not (isinstance(before, dict) and isinstance(value, dict) and _is_section(root, place)):
        return value
    return before | {key: _merged(root, before.get(key), inner, (*place, str(key))) for key, inner in value.items()}


def _is_section(root: Root, place: Sequence[str]) -> bool:
    """Return whether the setting at `place` is a section, rather than a mapping of the user's own names."""
    section: type[BaseModel] | None = root
    for part in place:
        if section is None or (not part.isdecimal() and part not in section.model_fields):
            return False
        if not part.isdecimal():
            section = section_of(section.model_fields[part].annotation)
    return section is not None
