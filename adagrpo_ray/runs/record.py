"""The base of all records: what it refuses, and how it becomes JSON and comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Self, get_args, get_type_hints

from adagrpo_ray.errors import RecordError


class OlderVersionError(ValueError):
    """A record was written by an older version, which named its fields otherwise; the message says which."""


@dataclass(frozen=True)
class Record:
    """Base of all records: its fields, in their order, are the keys of its JSON.

    A metric that was not measured is None. Raises RecordError on construction if a number is infinite or NaN.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(f"{type(self).__name__}.{field.name}", getattr(self, field.name))

    def to_dict(self) -> dict[str, object]:
        """The record in JSON's own types."""
        return {field.name: jsonable(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record whose `to_dict` gave `values`.

        A field with a default may be missing: it was added later. Raises OlderVersionError if another field is missing
        and `values` has one that is unknown, KeyError if a field is just missing, and ValueError if one is null that is
        always measured.
        """
        wanted = [f for f in fields(cls) if f.name in values or (f.default is MISSING is f.default_factory)]
        unknown = sorted(values.keys() - {field.name for field in fields(cls)}) if isinstance(values, Mapping) else []
        for field in wanted:
            if field.name not in values and unknown:
                raise OlderVersionError(f"no {field.name!r}, but {unknown[0]!r}")
            if values[field.name] is None and field.name not in optional(cls):
                raise ValueError(f"{field.name} is null")
        return cls(**{field.name: recorded(values[field.name]) for field in wanted})


def optional(record: type[Record]) -> frozenset[str]:
    """The fields of a kind of record that may be None."""
    if record not in _OPTIONAL:
        hints = get_type_hints(record)
        _OPTIONAL[record] = frozenset(name for name, hint in hints.items() if NoneType in get_args(hint))
    return _OPTIONAL[record]


_OPTIONAL: dict[type[Record], frozenset[str]] = {}


def jsonable(value: object) -> object:
    """`value` in JSON's own types."""
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bool):
        return value
    # numpy's scalars are of these two as well, and json would refuse them.
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return value


def recorded(value: Any) -> Any:
    """`value` out of JSON, as records have it."""
    if isinstance(value, Mapping):
        return {key: recorded(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(recorded(item) for item in value)
    return value


def _check(name: str, value: object) -> None:
    """Raises RecordError if a number in `value` is not finite; records in it were checked when they were made."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check(f"{name}[{key!r}]", item)
    elif isinstance(value, tuple | list):
        for place, item in enumerate(value):
            _check(f"{name}[{place}]", item)
    elif not isinstance(value, str | Integral | Record) and isinstance(value, Real) and not math.isfinite(value):
        raise RecordError(
            f"{name} is {value}, and a record takes finite numbers only, None for what was not measured: this is a "
            "fault of adagrpo_ray; report it with this line and the run's config.yaml"
        )
