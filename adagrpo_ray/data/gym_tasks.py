"""Tasks of the package reasoning-gym by name and settings, with errors that name the setting."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo_ray.errors import AdaGRPOError, ConfigError, first_line

CHUNK = 500
"""Problems of one data set: the default of the package. Some tasks refuse more, or generate all of them at once."""

SETTING = "reasoning_gym.tasks"
PACKAGE = "reasoning_gym"
INSTALL = "pip install 'adagrpo_ray[real]'"

# The types of values that are accepted, by the name of the type that a task declares for a setting.
_KINDS: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float), "str": (str,)}


def make_dataset(name: str, config: Mapping[str, Any], seed: int = 0, place: str = SETTING) -> Any:
    """Return the package's data set of `CHUNK` problems of a task; `place` names the task in errors.

    Raises ConfigError if the package or one that the task needs is not installed, if there is no such task or setting,
    or if the task refuses a value.
    """
    tasks = _tasks()
    if name not in tasks:
        (near,) = difflib.get_close_matches(name, tasks, n=1, cutoff=0.0)
        raise ConfigError(f"{place}.name={name!r} is no task of reasoning-gym; did you mean {near!r}?")
    make, settings = tasks[name]
    fields = {field.name: field for field in dataclasses.fields(settings)}
    values = {key: _value(fields, key, value, f"{place}.config.{key}", name) for key, value in config.items()}
    given = {key: value for key, value in (("seed", seed), ("size", CHUNK)) if key in fields}
    try:
        return make(config=_validated(settings, {**values, **given}))
    except ImportError as error:
        raise missing_package(name, error, place) from None
    except Exception as error:  # tasks raise different errors for bad settings
        alone = [key for key in values if not _accepted(settings, {key: values[key], **given})]
        key, value = (f".{alone[0]}", config[alone[0]]) if alone else ("", dict(config))
        raise ConfigError(
            f"{place}.config{key}={value!r:.200}: {name} refuses it: {first_line(error)}; change it"
        ) from None


def missing_package(name: str, error: ImportError, place: str = SETTING) -> ConfigError:
    """Return the error for a package that a task imports while it works."""
    package = (error.name or "").partition(".")[0]
    needed = f"the package {package}: pip install {package}" if package else f"a package ({error})"
    return ConfigError(f"{place}.name={name!r} needs {needed}")


def settings_key(config: Mapping[str, Any]) -> str:
    """Return the settings as one text, which does not depend on their order."""
    return json.dumps(config, sort_keys=True)


def _tasks() -> Mapping[str, tuple[Any, type[Any]]]:
    """Return the class and the settings class of each task, without the task that mixes others."""
    try:
        importlib.import_module(PACKAGE)
        factory = importlib.import_module(f"{PACKAGE}.factory")
    except ImportError as error:
        raise ConfigError(
            f"data.source={PACKAGE} needs the package reasoning-gym ({error}): {INSTALL}, or use other data"
        ) from None
    return {name: task for name, task in factory.DATASETS.items() if name != "composite"}


def _value(fields: Mapping[str, Any], key: str, value: Any, place: str, task: str) -> Any:
    """Return the value of a setting as the task takes it."""
    if key not in fields:
        raise ConfigError(f"{place}={value!r:.200}: {task} has no such setting; {_hint(key, list(fields))}")
    field = fields[key]
    if isinstance(value, list) and isinstance(field.default, tuple):
        return tuple(value)
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    wanted = _KINDS.get(kind)
    if wanted is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool")):
        raise ConfigError(f"{place}={value!r:.200}: {task} takes a value of type {kind}, such as {field.default!r}")
    return value


def _hint(key: str, known: Sequence[str]) -> str:
    known = [name for name in known if name not in ("seed", "size")]
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"


def _validated(settings: type[Any], values: Mapping[str, Any]) -> Any:
    made = settings(**values)
    if hasattr(made, "validate"):
        made.validate()
    return made


def _accepted(settings: type[Any], values: Mapping[str, Any]) -> bool:
    try:
        _validated(settings, values)
    except AdaGRPOError:
        raise
    except Exception:
        return False
    return True
