"""The base class of all records: checks numbers, and converts to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Self, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from adagrpo_ray.errors import RecordError


class OlderVersionError(ValueError):
    """A record was written by an older version, with other names of fields; the message has two of them."""


@dataclass(frozen=True)
class Record:
    """Base class of all records. Its fields, in their order, are the keys of its JSON.

    A metric that was not measured is None. The constructor raises RecordError if a number is infinite or NaN.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(f"{type(self).__name__}.{field.name}", getattr(self, field.name))

    def to_dict(self) -> dict[str, object]:
        """The record in JSON types."""
        return {field.name: jsonable(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record whose `to_dict` returned `values`.

        A field with a default may be missing, because it was added later. If another field is missing, raises
        OlderVersionError if `values` has an unknown key, and KeyError otherwise. Raises ValueError if a field is null
        that is always measured.
        """
        types = _types(cls)  # type: ignore[arg-type]  # mypy finds no hash of a type (its issue 11470)
        wanted = [f for f in fields(cls) if f.name in values or (f.default is MISSING is f.default_factory)]
        unknown = sorted(values.keys() - {field.name for field in fields(cls)}) if isinstance(values, Mapping) else []
        for field in wanted:
            if field.name not in values and unknown:
                raise OlderVersionError(f"no {field.name!r}, but {unknown[0]!r}")
            if values[field.name] is None and NoneType not in get_args(types[field.name]):
                raise ValueError(f"{field.name} is null")
        return cls(**{field.name: recorded(values[field.name], types[field.name]) for field in wanted})


@cache
def _types(record: Hashable) -> dict[str, Any]:
    """The types of the fields of a kind of record, by name."""
    return get_type_hints(record)


def jsonable(value: object) -> object:
    """`value` in JSON types."""
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bool):
        return value
    # numpy's scalars are instances of these too, and json refuses them.
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return value


def recorded(value: Any, kind: Any = None) -> Any:
    """`value` from JSON in the types of records: a list becomes a tuple, of records if `kind` is a tuple of them."""
    inner = get_args(kind)[0] if get_origin(kind) is tuple else None
    if isinstance(inner, type) and issubclass(inner, Record):
        return tuple(inner.from_dict(item) for item in value)
    if isinstance(value, Mapping):
        return {key: recorded(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(recorded(item) for item in value)
    return value


def _check(name: str, value: object) -> None:
    """Raise RecordError if a number in `value` is not finite. Records in it were checked by their constructor."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check(f"{name}[{key!r}]", item)
    elif isinstance(value, tuple | list):
        for place, item in enumerate(value):
            _check(f"{name}[{place}]", item)
    elif not isinstance(value, str | Integral | Record) and isinstance(value, Real) and not math.isfinite(value):
        raise RecordError(
            f"{name} is {value}, but a record takes only finite numbers, and None if a metric was not measured: this "
            "is a fault of adagrpo_ray; report it with this line and the run's config.yaml"
        )
