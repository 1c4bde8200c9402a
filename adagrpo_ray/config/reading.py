"""Reading the settings of any root section: a YAML file, then dotted overrides, then validation with one error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from adagrpo_ray.config.overrides import override
from adagrpo_ray.config.refusals import explain
from adagrpo_ray.config.section import Section
from adagrpo_ray.config.yaml_text import parse, resolved
from adagrpo_ray.errors import ConfigError

Settings = TypeVar("Settings", bound=Section)

DECIDED = "decided"
"""Key in the config.yaml of a run: the settings that were null, by dotted key, with the values that the run decided."""


def read_settings(
    root: type[Settings], path: str | Path | None, overrides: Sequence[str] | Mapping[str, object] = ()
) -> Settings:
    """Return the settings in the YAML file at `path`, changed by `overrides`.

    An override is a text with a YAML value ("learner.learning_rate=1e-4") or an entry with a Python value
    ({"learner.learning_rate": 1e-4}). A number in a key selects a list entry ("algorithm.triggers.0.from_step=5"). The
    last of several overrides of one key wins. A mapping for a section ("learner={ranks: 2}") changes the keys that it
    names.

    The file may be the config.yaml of a run. Settings that the run decided are null again, unless they were changed
    there.

    Raises ConfigError if a key is unknown (with the nearest valid name), a value is invalid, settings conflict, a file
    has a key twice, or a path or URL holds a secret. It names all of them at once.
    """
    tree = {} if path is None else _read(Path(path))
    return _settings(root, _undecided(tree), overrides)


def changed(settings: Settings, overrides: Sequence[str] | Mapping[str, object]) -> Settings:
    """Return `settings` changed by `overrides`, with the forms and errors of `read_settings`."""
    return _settings(type(settings), settings.model_dump(mode="json"), overrides)


def read_tree(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file as written there; in the config.yaml of a run, those that it ran with.

    Raises ConfigError if the file cannot be read or is no mapping.
    """
    return {key: resolved(value) for key, value in _read(path).items() if key != DECIDED}


def _settings(root: type[Settings], tree: dict[str, Any], overrides: Sequence[str] | Mapping[str, object]) -> Settings:
    override(root, tree, overrides)
    conflicts: list[str] = []
    try:
        settings = root.model_validate(tree, context=conflicts)
    except ValidationError as error:
        raise ConfigError("\n".join([*(explain(e, root) for e in _causes(error)), *conflicts])) from None
    if conflicts:
        raise ConfigError("\n".join(conflicts))
    return settings


def _causes(error: ValidationError) -> Iterator[Any]:
    """Yield the errors of pydantic without those that follow from others: it counts no entry that has an error."""
    places = [each["loc"] for each in error.errors()]
    for each in error.errors():
        inner = any(place[: len(each["loc"])] == each["loc"] != place for place in places)
        if not (each["type"] == "too_short" and inner):
            yield each


def _undecided(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a file without DECIDED; those that still have the decided value are null."""
    decided = tree.get(DECIDED)
    if not isinstance(decided, dict):
        return tree
    for key, value in decided.items():
        *sections, name = key.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and node.get(name) == value:
            node[name] = None
    return {key: value for key, value in tree.items() if key != DECIDED}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text, a path with a null character
        raise ConfigError(f"cannot read the configuration {path}: {error}; give --config a YAML file") from None
    tree = parse(text, f"the configuration {path}")
    if not isinstance(tree, dict):
        tree = resolved(tree)
        if tree is None:
            return {}
        raise ConfigError(f"the configuration {path} holds a {type(tree).__name__}; it must be a mapping of sections")
    return tree
