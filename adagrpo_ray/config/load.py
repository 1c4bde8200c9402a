"""Reading a configuration: YAML file, then dotted overrides, then one clear error or the tree."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from adagrpo_ray.config.secrets import refuse_secrets
from adagrpo_ray.config.tree import Config
from adagrpo_ray.config.typed import Misfit
from adagrpo_ray.config.yaml_text import Plain, parse, resolved
from adagrpo_ray.errors import ConfigError

RENAMED = {
    "algorithm.updates": "algorithm.num_iterations",
    "checkpoint.keep_last": "checkpoint.save_total_limit",
    "data.columns.answer": "data.columns.ground_truth",
    "data.columns.level": "data.columns.difficulty",
    "data.held_out_prompts": "data.eval_prompts",
    "learner.gradient_clip": "learner.max_grad_norm",
    "learner.layout": "learner.packing",
    "learner.warmup": "learner.warmup_ratio",
    "reasoning_gym.tasks.level": "reasoning_gym.tasks.difficulty",
    "rollout.eager": "rollout.enforce_eager",
    "rollout.gpu_memory_share": "rollout.gpu_memory_utilization",
    "rollout.max_sequences": "rollout.max_num_seqs",
    "rollout.sync": "rollout.lora_mode",
    "rollout.tensor_parallel": "rollout.tensor_parallel_size",
    "run.folder": "run.output_dir",
}
"""Settings that had another name, by that name."""

_shown = reprlib.Repr()  # of any value, however long, deep or full of aliases
_shown.maxstring = _shown.maxother = _shown.maxlong = 200
_shown.maxlevel = 4


def load_config(path: str | Path | None, overrides: Sequence[str] | Mapping[str, object] = ()) -> Config:
    """The configuration in the YAML file at `path`, changed by `overrides` ("learner.learning_rate=1e-4").

    The value of such a text is YAML; {"learner.learning_rate": 1e-4} has it as it is. List entries are reached by
    number ("algorithm.triggers.0.from_step=5"). Of two overrides of one key the last counts. A mapping for a section
    ("learner={ranks: 2}") changes the keys that it names. Raises ConfigError that names every bad key, its value and
    the nearest valid name, a key that a file gives twice, or a place that holds a secret.
    """
    return _changed(_read(Path(path)) if path is not None else {}, overrides)


def changed(config: Config, overrides: Sequence[str] | Mapping[str, object]) -> Config:
    """`config` with other values, as `load_config` takes them; raises what it raises."""
    return _changed(config.model_dump(mode="json"), overrides)


def _changed(tree: dict[str, Any], overrides: Sequence[str] | Mapping[str, object]) -> Config:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            if not isinstance(key, str) or not all(key.strip().split(".")):
                raise ConfigError(f"overrides have the key {key!r}; give dotted keys, as in 'learner.learning_rate'")
            _set(tree, key, _keyed(value), f"{key}={_shown.repr(value)}")
    else:
        for override in overrides:
            _apply(tree, override)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None
    refuse_secrets(config)
    return config


def _keyed(value: object) -> object:
    """A value of Python's with the keys of its mappings as text, as those of YAML are here."""
    if isinstance(value, Mapping):
        texts = {str(key) for key in value if isinstance(key, str)}
        return {
            str(key) if isinstance(key, int) and str(key) not in texts else key: _keyed(inner)
            for key, inner in value.items()
        }
    return [_keyed(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_tree(path: Path) -> dict[str, Any]:
    """The settings in a YAML file as they stand there; ConfigError if it is no mapping."""
    return {key: resolved(value) for key, value in _read(path).items()}


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


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one "dotted.key=value" in the raw tree."""
    key, equals, text = override.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"cannot read the override {override!r}; write key=value, as in learner.learning_rate=1e-4")
    if not text.strip():
        raise ConfigError(
            f"the override {override!r} has no value; write {key.strip()}=null for none, {key.strip()}='\"\"' for an "
            "empty text"
        )
    _set(tree, key, parse(text, f"the value of {key.strip()}"), override)


def _set(tree: dict[str, Any], key: str, value: Any, override: str) -> None:
    """Set `key` to `value`, as `override` says, making mappings on the way."""
    names = key.strip().split(".")
    node: Any = tree
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        if isinstance(node, list):
            if not (name.isascii() and name.isdecimal()) or int(name) >= len(node):
                there = f"none of its numbers 0 to {len(node) - 1}" if node else "no number of an empty list"
                raise ConfigError(
                    f"{override!r}: {'.'.join(names[:depth])} is a list of {len(node)}; {name!r} is {there}"
                )
            index: Any = int(name)
        elif isinstance(node, dict):
            index = name
        else:
            there = f"{'.'.join(names[:depth])} is the value {_shown.repr(node)}"
            raise ConfigError(f"{override!r}: {there} and has no {name!r}")
        if last:
            before = node[index] if isinstance(node, list) else node.get(index)
            merges = isinstance(before, dict) and isinstance(value, dict) and _is_section(names)
            node[index] = _merged(before, value, tuple(names)) if merges else value
        else:
            given = isinstance(node, list) or index in node
            node[index] = _opened(node[index] if given else _default(names[: depth + 1]))
            node = node[index]


def _default(place: Sequence[str]) -> Any:
    """What the setting at `place` is if no file and no override says more; None if there is no such setting."""
    value: Any = Config().model_dump(mode="json")
    for part in place:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _opened(inner: Any) -> Any:
    """What an override goes into: a mapping for nothing, a section of Python's as a mapping."""
    if isinstance(inner, BaseModel):
        return inner.model_dump(mode="json")
    return {} if inner is None or (isinstance(inner, Plain) and inner.is_null) else inner


def _merged(before: dict[str, Any], new: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    """A section with the keys in `new` as they are there, and the others as before."""
    merged = dict(before)
    for key, value in new.items():
        inner = merged.get(key)
        into = isinstance(inner, dict) and isinstance(value, dict) and _is_section((*place, str(key)))
        merged[key] = _merged(inner, value, (*place, str(key))) if into and inner is not None else value
    return merged


def _is_section(place: Sequence[str]) -> bool:
    """Whether the setting at `place` is a section, rather than a mapping of the user's own names."""
    section: type[BaseModel] | None = Config
    for part in place:
        if section is None or (not part.isdecimal() and part not in section.model_fields):
            return False
        if not part.isdecimal():
            section = _section_of(section.model_fields[part].annotation)
    return section is not None


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: key, value, what to do."""
    place, value = tuple(error["loc"]), error["input"]
    key = ".".join(str(part).strip("'") for part in place if part != "[key]")
    if (new := RENAMED.get(".".join(str(part) for part in place if not isinstance(part, int)))) is not None:
        return f"{key} (value {_shown.repr(value)}) is called {new} now; rename it"
    if error["type"] == "extra_forbidden":
        valid = _valid_names(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*map(str, place[:-1]), near[0]])!r}?" if near else f"valid: {', '.join(valid)}"
        return f"unknown key {key!r} (value {_shown.repr(value)}); {hint}"
    value = list(value) if isinstance(value, tuple) else value
    message: str = error["msg"].removeprefix("Value error, ").replace("Tuple should", "input should be a list that")
    message = message.replace("a list that have", "a list that has").replace(" after validation", "")
    message = message[:1].lower() + message[1:]
    if not place:
        return message
    if error["type"] == "missing":
        return f"{key} is missing; set it"
    if error["type"] == "literal_error":
        words = error["ctx"]["expected"].replace(" or ", ", ").split(", ")  # "'a', 'b' or 'c'"
        near = difflib.get_close_matches(value if isinstance(value, str) else "", [w.strip("'") for w in words], n=1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    if error["type"] in ("model_type", "model_attributes_type"):
        message = f"input should be a valid dictionary: {key} is a section, whose keys go as {key}.KEY=VALUE"
    elif isinstance(value, Misfit) and error["type"] != "literal_error":
        message = value.why
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
