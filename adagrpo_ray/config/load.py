"""Reading a configuration: YAML file, then dotted overrides, then one clear error or the tree."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from adagrpo_ray.config.secrets import refuse_secrets
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ConfigError, first_line

MOST_ALIASES = 20
"""Of a YAML text: a few dozen that name one another can stand for billions of values."""

_shown = reprlib.Repr()  # of any value, however long, deep or full of aliases
_shown.maxstring = _shown.maxother = _shown.maxlong = 200
_shown.maxlevel = 4


def load_config(path: str | Path | None, overrides: Sequence[str] | Mapping[str, object] = ()) -> Config:
    """The configuration in the YAML file at `path`, changed by `overrides` ("learner.learning_rate=1e-4").

    The value of such a text is YAML; {"learner.learning_rate": 1e-4} has it as it is. List entries are reached by
    number ("algorithm.triggers.0.from_step=5"). Raises ConfigError that names every bad key, its value and the nearest
    valid name, or a place that holds a secret.
    """
    return _changed(read_tree(Path(path)) if path is not None else {}, overrides)


def changed(config: Config, overrides: Sequence[str] | Mapping[str, object]) -> Config:
    """`config` with other values, as `load_config` takes them; raises what it raises."""
    return _changed(config.model_dump(mode="json"), overrides)


def _changed(tree: dict[str, Any], overrides: Sequence[str] | Mapping[str, object]) -> Config:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _set(
                tree, key, os.fspath(value) if isinstance(value, os.PathLike) else value, f"{key}={_shown.repr(value)}"
            )
    else:
        for override in overrides:
            _apply(tree, override)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None
    refuse_secrets(config)
    return config


def read_tree(path: Path) -> dict[str, Any]:
    """The settings in a YAML file as they stand there; ConfigError where it is no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}; give --config a YAML file") from None
    tree = _parse(text, f"the configuration {path}")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"the configuration {path} holds a {type(tree).__name__}; it must be a mapping of sections")
    return tree


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # beside YAMLError what Python says to a date of month 13, or to a thousand brackets
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(f"{what} is not valid YAML{line}: {problem}; mend that line") from None


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader, for texts of few aliases."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, f"more than {MOST_ALIASES} aliases", mark)
        return super().compose_node(parent, index)


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one "dotted.key=value" in the raw tree."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"cannot read the override {override!r}; write key=value, as in learner.learning_rate=1e-4")
    _set(tree, key, _parse(text, f"the value of {key}"), override)


def _set(tree: dict[str, Any], key: str, value: Any, override: str) -> None:
    """Set `key` to `value`, as `override` says, making mappings on the way."""
    names = key.strip().split(".")
    node: Any = tree
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        if isinstance(node, list):
            if not name.isdecimal() or int(name) >= len(node):
                there = f"none of its numbers 0 to {len(node) - 1}" if node else "no number of an empty list"
                raise ConfigError(
                    f"{override!r}: {'.'.join(names[:depth])} is a list of {len(node)}; {name!r} is {there}"
                )
            index: Any = int(name)
        elif isinstance(node, dict):
            index = int(name) if name.isdecimal() else name
        else:
            there = f"{'.'.join(names[:depth])} is the value {_shown.repr(node)}"
            raise ConfigError(f"{override!r}: {there} and has no {name!r}")
        if last:
            node[index] = value
        else:
            if isinstance(node, dict) and node.get(index) is None:
                node[index] = {}
            node = node[index]


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: key, value, what to do."""
    place, value = tuple(error["loc"]), error["input"]
    key = ".".join(str(part) for part in place)
    if error["type"] == "extra_forbidden":
        valid = _valid_names(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*map(str, place[:-1]), near[0]])!r}?" if near else f"valid: {', '.join(valid)}"
        return f"unknown key {key!r} (value {_shown.repr(value)}); {hint}"
    message: str = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not place:
        return message
    if error["type"] == "missing":
        return f"{key} is missing; set it"
    if error["type"] == "literal_error":
        words = error["ctx"]["expected"].replace(" or ", ", ").split(", ")  # "'a', 'b' or 'c'"
        near = difflib.get_close_matches(value if isinstance(value, str) else "", [w.strip("'") for w in words], n=1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    return f"{key}={_shown.repr(value)}: {message}"


def _valid_names(place: tuple[Any, ...]) -> list[str]:
    """Names of the settings in the section at `place`."""
    section: type[BaseModel] = Config
    for part in place:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for s in map(_section_of, get_args(annotation)) if s is not None), None)
