"""Ground truths as text. Numbers are written as people write them, with no digits that the data does not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

# ECMAScript writes numbers between these powers without an exponent (Number::toString, ECMA-262).
_SMALLEST_POWER, _LARGEST_POWER = -6, 20

Restore = Callable[[Any], Any]


def answer_text(value: Any) -> str | None:
    """Return a ground truth as a person would write it, without white space around it; None if it is empty or no value.

    A number has its shortest digits and no trailing zeros: 5.0 is "5", 1e16 is "10000000000000000", -0.0 is "0", the
    float32 nearest to 0.1 is "0.1", Decimal("1.50") is "1.5". From 1e21 on, and below 1e-6, it has an exponent.
    A boolean is "True" or "False". NaN and infinite numbers are no values.
    """
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | np.floating):
        return _decimal_text(Decimal(str(value))) if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return _decimal_text(value) if value.is_finite() else None
    return None


def _decimal_text(value: Decimal) -> str:
    if not value:
        return "0"
    if not _SMALLEST_POWER <= value.adjusted() <= _LARGEST_POWER:
        digits, exponent = _stripped(value)
        first, rest = digits[0], digits[1:]
        sign = "-" if value < 0 else ""
        return f"{sign}{first}{f'.{rest}' if rest else ''}e{exponent + len(rest):+d}"
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _stripped(value: Decimal) -> tuple[str, int]:
    """Return the digits without trailing zeros, and the power of ten to multiply them with."""
    _, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits))
    kept = text.rstrip("0")
    return kept, int(exponent) + len(text) - len(kept)


def restore_floats(schema: Any) -> Restore | None:
    """Return a function that restores the floats in a row of an Arrow schema; None if there are none to restore.

    Arrow returns a float32 or float16 as a double, 0.10000000149011612 for 0.1. The function returns the double with
    the shortest digits that give the same float32 or float16, 0.1. It also works inside of structs, lists and maps.
    """
    fields = {field.name: restore for field in schema if (restore := _restore(field.type)) is not None}
    return _in_mapping(fields) if fields else None


def _restore(kind: Any) -> Restore | None:
    """Return a function that restores the floats in a value of this Arrow type; None if there are none to restore."""
    import pyarrow as pa

    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        exact = np.float32 if pa.types.is_float32(kind) else np.float16
        return lambda value: None if value is None else float(str(exact(value)))
    if pa.types.is_struct(kind):
        fields = {field.name: restore for field in kind if (restore := _restore(field.type)) is not None}
        return _in_mapping(fields) if fields else None
    if pa.types.is_map(kind):
        key, item = _restore(kind.key_type), _restore(kind.item_type)
        return _in_pairs(key or _same, item or _same) if key or item else None
    if pa.types.is_dictionary(kind) or isinstance(kind, pa.RunEndEncodedType):
        return _restore(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _restore(kind.storage_type)
    inner = _restore(kind.value_type) if hasattr(kind, "value_type") else None  # lists of all kinds
    return None if inner is None else lambda values: None if values is None else [inner(value) for value in values]


def _same(value: Any) -> Any:
    return value


def _in_mapping(fields: Mapping[str, Restore]) -> Restore:
    def restore(row: Any) -> Any:
        if row is None:
            return None
        return {key: fields[key](value) if key in fields else value for key, value in row.items()}

    return restore


def _in_pairs(key: Restore, item: Restore) -> Restore:
    def restore(pairs: Any) -> Any:
        """Restore a map, which Arrow returns as a mapping or as a list of pairs."""
        if isinstance(pairs, Mapping):
            return {key(k): item(v) for k, v in pairs.items()}
        return None if pairs is None else [(key(k), item(v)) for k, v in pairs]

    return restore
