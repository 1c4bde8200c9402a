"""Reading a value by the type of its setting: numbers as numbers, true and false as booleans, text as text."""

from __future__ import annotations

import operator
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from adagrpo_ray.config.yaml_text import Plain

_NONE = type(None)


@dataclass(frozen=True)
class Misfit:
    """Stands for a value that its setting does not take. Pydantic refuses it and names its key.

    `why` is the remedy, or "" to keep pydantic's message.
    """

    value: object
    why: str

    def __repr__(self) -> str:
        return repr(self.value)


def read_as(annotation: Any, value: Any) -> Any:
    """Return `value`, from YAML or Python, as the type `annotation`, or a Misfit. Pydantic checks it further.

    Only equivalent values are converted: `Plain` of YAML, numbers of numpy, paths, a whole number for a float, a list
    for a tuple.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return read_as(inner[0], value)
    if origin in (Union, types.UnionType):
        return _one_of(inner, value)
    if origin is Literal:
        return _literal(inner, value)
    if origin is tuple:
        return _tuple(inner, value)
    if origin is dict:
        return _dict(inner, value)
    reader = _READERS.get(annotation)
    if reader is not None:
        return reader(value)
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return _any(value)
    if isinstance(value, Plain):
        return Misfit(value, "")
    return dict(value) if isinstance(value, Mapping) else value


def _any(value: Any) -> Any:
    """Return a value of a setting that takes any type: read by the core schema if all readers of YAML agree on it."""
    if isinstance(value, Plain):
        if value.old_bool:
            return Misfit(value, f"write true or false, or '{value}' in quotes for the text")
        return _number(value) if value.leading_zero else _core(value)
    if isinstance(value, Mapping):
        return {str(key): _any(inner) for key, inner in value.items()}
    return [_any(inner) for inner in value] if isinstance(value, list | tuple) else value


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    """Return the value as the first type that takes it. Null is taken only if None is among the types."""
    if _NONE in kinds and (value is None or (isinstance(value, Plain) and value.is_null)):
        return None
    found: Any = None
    for kind in kinds:
        if kind is not _NONE:
            found = read_as(kind, value)
            if not isinstance(found, Misfit):
                return found
    return found


def _literal(values: tuple[Any, ...], value: Any) -> Any:
    if isinstance(values[0], str):
        return value.text if isinstance(value, Plain) else _text(value)
    return _int(value)


def _tuple(kinds: tuple[Any, ...], value: Any) -> Any:
    if _is_numpy(value, scalar=False):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return Misfit(value, "input should be a list, as in [a, b]")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(read_as(kinds[0], each) for each in value)
    if len(value) != len(kinds):
        return Misfit(value, f"input should be a list of {len(kinds)} values")
    return tuple(read_as(kind, each) for kind, each in zip(kinds, value, strict=True))


def _dict(kinds: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, Mapping):
        return Misfit(value, "input should be a mapping, as in {key: value}")
    found: dict[Any, Any] = {}
    for key, inner in value.items():
        name = _key(kinds[0], key)
        if name in found:
            return Misfit(dict(value), f"the key {name!r} is given twice; leave one")
        found[name] = read_as(kinds[1], inner)
    return found


def _key(kind: Any, key: Any) -> Any:
    """Return a key as its type. Keys are text in YAML and JSON, so that a number may be written as text."""
    if get_origin(kind) is Annotated:
        return _key(get_args(kind)[0], key)
    if kind is int and isinstance(key, str) and key.isascii() and key.isdecimal():
        return _int(Plain(key))
    return read_as(kind, key)


def _core(value: Plain) -> int | float | bool | str | Misfit | None:
    try:
        return value.value
    except ValueError:  # Python reads no integer of more than 4,300 digits
        return Misfit(value, "input has too many digits")


def _bool(value: Any) -> Any:
    found = _core(value) if isinstance(value, Plain) else value.item() if _is_numpy(value) else value
    if isinstance(found, bool):
        return found
    return Misfit(value, "input should be true or false")


def _int(value: Any) -> Any:
    found = _number(value)
    if isinstance(found, float):
        hint = f"; write {int(found)}" if found.is_integer() and abs(found) < 2**53 else ""
        return Misfit(value, f"input should be a valid integer, not a fraction{hint}")
    if isinstance(found, Misfit) and found.why == "":
        return Misfit(value, f"input should be a valid integer{_unquoted(value)}")
    return found


def _float(value: Any) -> Any:
    found = _number(value)
    if isinstance(found, Misfit):
        return found if found.why else Misfit(value, f"input should be a valid number{_unquoted(value)}")
    try:
        float(found)
    except OverflowError:
        return Misfit(value, "input should be a finite number")
    return found  # an integer is shown as such if it is out of bounds


def _unquoted(value: Any) -> str:
    """Return the remedy for a number that was written as text; "" for any other value."""
    try:
        return f"; write {float(value):g} without quotes" if isinstance(value, str) else ""
    except ValueError:
        return ""


def _number(value: Any) -> int | float | Misfit:
    """Return the Python number for a number of YAML, numpy or Python; Misfit for true, false and other values."""
    if isinstance(value, Plain):
        if value.leading_zero:
            shown = int(value.text) if len(value.text) < 20 else "it"
            return Misfit(
                value, f"a number that begins with 0 is octal to some readers of YAML; write {shown} without the zero"
            )
        value = _core(value)
    elif _is_numpy(value):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return value if isinstance(value, Misfit) else Misfit(value, "")
    if hasattr(value, "__index__"):
        return operator.index(value)
    return float(value)


def _text(value: Any) -> Any:
    if isinstance(value, Plain):
        if value.is_null:
            return Misfit(value, "input should be a valid string; put it in quotes if it is the text null")
        return value.text
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return str(value) if isinstance(value, str) else Misfit(value, "input should be a valid string")


def _is_numpy(value: Any, *, scalar: bool = True) -> bool:
    """Return whether it is a number of numpy or an array without dimensions; if not `scalar`, an array with some."""
    dimensions: int | None = getattr(value, "ndim", None)
    return type(value).__module__.partition(".")[0] == "numpy" and dimensions is not None and (not dimensions) == scalar


_READERS = {bool: _bool, int: _int, float: _float, str: _text}
