"""Reading the rows of one local file: JSON lines, JSON, CSV, TSV or parquet. Text files may be compressed by gzip."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo_ray.data.answers import restore_floats
from adagrpo_ray.errors import DataError, first_line

Row = Mapping[str, Any]

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
NAMED_KINDS = ".jsonl, .json, .csv, .tsv or .parquet"
"""The kinds of files, for messages."""
PACKED = ".gz"


def kind(path: Path) -> str | None:
    """Return the kind of a file by its name, in lower case and without `.gz`; None if it cannot be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [PACKED]:
        found = suffixes[-2] if len(suffixes) > 1 else ""
        return found if found in KINDS and found != ".parquet" else None
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def read_file(path: Path) -> Sequence[Row]:
    """Return the rows of a file of one of `KINDS`.

    Values of CSV and TSV are texts without conversion; an empty cell is None. Raises DataError, which names the file
    and the line if possible, if the file cannot be read.
    """
    found = kind(path)
    if found == ".parquet":
        return _parquet(path)
    try:
        text = _text(path)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; it must be a readable UTF-8 file") from None
    if found == ".json":
        return _json(path, text)
    if found in (".csv", ".tsv"):
        return _csv(path, text, "\t" if found == ".tsv" else _delimiter(text))
    return _json_lines(path, text)


def _text(path: Path) -> str:
    """Return the whole text with unchanged line ends."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix.lower() == PACKED else data).decode("utf-8-sig")


def _loads(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError if it is none, has a key twice, or is nested too deeply."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"it has the key {_twice(key for key, _ in pairs)!r} twice")
    return row


def _twice(names: Iterable[str]) -> str | None:
    """Return the first name that occurs a second time; None if there is none."""
    seen = set[str]()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _json_lines(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            row = _loads(line)
        except ValueError as error:  # also for a number of thousands of digits
            raise DataError(f"{path}, line {number} is not JSON ({error}); correct or remove it") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} holds a {type(row).__name__}; each line must be an object")
        rows.append(row)
    return rows


def _json(path: Path, text: str) -> list[Row]:
    """Return the rows of a JSON file: a list of objects, one object, or lines with one object each."""
    if not text.strip():
        return []
    try:
        value = _loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(path, text)
        raise DataError(f"{path} is not JSON ({error}); correct it") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); correct it") from None
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, entry {number} holds a {type(row).__name__}; each entry must be an object")
    return rows


def _delimiter(text: str) -> str:
    """Return the delimiter of the first line: a comma, else a semicolon or tab, which some spreadsheets write."""
    head = text.partition("\n")[0]
    return next((mark for mark in (",", ";", "\t") if mark in head), ",")


def _csv(path: Path, text: str, delimiter: str) -> list[Row]:
    limit = csv.field_size_limit(sys.maxsize)  # by default the csv module refuses a cell of over 128 KiB
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(lines, [])]
        if (twice := _twice(names)) is not None:
            raise DataError(f"{path} has two columns of the name {twice!r}; rename one")
        rows: list[Row] = []
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{path}, line {lines.line_num} has {len(cells)} cells and the first line {len(names)}; "
                    "correct or remove it"
                )
            rows.append({name: cell or None for name, cell in zip(names, cells, strict=True)})
        return rows
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num} is not CSV ({error}); correct or remove it") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Sequence[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        restore = restore_floats(table.schema)
        rows: list[Row] = table.to_pylist(maps_as_pydicts="strict")
        rows = rows if restore is None else [restore(row) for row in rows]
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}; it must be a parquet file") from None
    if (twice := _twice(table.column_names)) is not None:
        raise DataError(f"{path} has two columns of the name {twice!r}; rename one")
    return rows
