"""Rows of a data set: a .jsonl or .parquet file, or a data set of the Hub."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo_ray.config.tree import DataSettings
from adagrpo_ray.errors import DataError, first_line

Row = Mapping[str, Any]
FILES = (".jsonl", ".parquet")


def load_rows(data: DataSettings) -> Sequence[Row]:
    """All rows of `data.source`; DataError where it cannot be read or holds none."""
    path = Path(data.source)
    if path.suffix in FILES:
        if not os.path.isfile(path):
            raise DataError(f"data.source={data.source!r} is no file{_nearest_file(path)}; give a file or a Hub name")
        rows = list(_jsonl(path)) if path.suffix == ".jsonl" else _parquet(path)
    else:
        rows = _hub(data)
    if not len(rows):
        raise DataError(f"data.source={data.source!r} is empty; give a data set with rows")
    return rows


def column(row: Row, name: str, setting: str) -> Any:
    """The value of the column `name`, where a dot reaches into a nested value; None where that is null.

    Raises DataError that names the setting, the missing column and the nearest that is there.
    """
    value: Any = row
    for depth, part in enumerate(name.split(".")):
        if name in row:  # a column may have a dot in its own name
            return row[name]
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            there = list(value) if isinstance(value, Mapping) else []
            near = difflib.get_close_matches(part, there, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(str, there)) or 'no columns'}"
            where = ".".join(name.split(".")[:depth])
            raise DataError(
                f"{setting}={name!r}: the data has no column {part!r}{f' in {where!r}' if where else ''}; {hint}"
            )
        value = value[part]
    return value


def _jsonl(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
                    raise DataError(f"{path}, line {number} is not JSON ({error}); mend or remove it") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number} holds a {type(row).__name__}; each line must be an object")
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; it must be a readable UTF-8 file") from None


def _parquet(path: Path) -> Sequence[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}; it must be a parquet file") from None
    return rows


def _hub(data: DataSettings) -> Sequence[Row]:
    from datasets import load_dataset
    from datasets.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # what it would log is in the error
    try:
        rows: Sequence[Row] = load_dataset(data.source, data.subset, split=data.split)
    except Exception as error:  # what a file holds makes datasets fail in any way
        raise DataError(
            f"data.source={data.source!r} (subset {data.subset!r}, split {data.split!r}) cannot be loaded: "
            f"{first_line(error.__cause__ or error)}; give 'arithmetic', a .jsonl or .parquet file, or a Hub name"
        ) from None
    return rows


def _nearest_file(path: Path) -> str:
    there = [p.name for p in path.parent.iterdir() if p.suffix in FILES] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1)
    return f" (there is {near[0]!r})" if near else ""
