"""Ground truths as text, from every kind of column."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.config.data import DataSettings
from adagrpo_ray.data.answers import answer_text, restore_floats
from adagrpo_ray.data.source import load_rows
from adagrpo_ray.rewards.numbers import parse_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e16, "10000000000000000"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (1e-6, "0.000001"),
        (1.25e-7, "1.25e-7"),
        (-2.5e-7, "-2.5e-7"),
        (5.0, "5"),
        (100.0, "100"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (-1234.5, "-1234.5"),
        (np.float32(0.1), "0.1"),
        (np.float16(0.1), "0.1"),
        (np.float64(0.1), "0.1"),
        (np.int64(7), "7"),
        (np.bool_(True), "True"),
        (False, "False"),
        (10**30, "1" + "0" * 30),
        (Decimal("1.50"), "1.5"),
        (Decimal("12.00"), "12"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E+9999999"), "1e+9999999"),
        (Decimal("0E-9"), "0"),
        (" 42\n", "42"),
        ("1e3", "1e3"),
        ("", None),
        (" \n", None),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        (np.float32("nan"), None),
        (Decimal("NaN"), None),
        (["1"], None),
        ({"a": 1}, None),
        (b"1", None),
    ],
)
def test_ground_truth_is_written_as_people_write_it(value: Any, text: str | None) -> None:
    assert answer_text(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_all_digits(value: float) -> None:
    text = answer_text(value)
    assert text is not None
    assert float(text) == value
    number = parse_number(text)
    assert number is not None
    assert float(number) == value


NESTED = pa.schema(
    [
        ("plain", pa.float32()),
        ("half", pa.float16()),
        ("double", pa.float64()),
        ("coded", pa.dictionary(pa.int32(), pa.float32())),
        ("inside", pa.struct([("truth", pa.float32()), ("text", pa.string())])),
        ("many", pa.list_(pa.struct([("score", pa.float32())]))),
        ("named", pa.map_(pa.string(), pa.float32())),
    ]
)


def test_float32_columns_are_restored_at_any_depth(tmp_path: Path) -> None:
    row = {
        "plain": 0.1,
        "half": np.float16(0.1),
        "double": 0.1,
        "coded": 0.1,
        "inside": {"truth": 0.1, "text": "a"},
        "many": [{"score": 0.1}, None],
        "named": {"x": 0.1},
    }
    empty = dict.fromkeys(row)
    pq.write_table(pa.Table.from_pylist([row, empty], schema=NESTED), tmp_path / "d.parquet")
    first, second = load_rows(DataSettings(source=str(tmp_path / "d.parquet")))
    assert first == {**row, "half": 0.1}
    assert second == empty


def test_schema_without_small_floats_needs_no_restoring() -> None:
    assert restore_floats(pa.schema([("a", pa.float64()), ("b", pa.list_(pa.struct([("c", pa.string())])))])) is None


def test_float32_columns_of_datasets_folder_are_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    table = pa.table({"prompt": ["a"], "inside": pa.array([{"truth": 0.1}], pa.struct([("truth", pa.float32())]))})
    pq.write_table(table, folder / "train.parquet")
    assert list(load_rows(DataSettings(source=str(folder)))) == [{"prompt": "a", "inside": {"truth": 0.1}}]


def test_decimal_and_integer_columns_become_their_digits(tmp_path: Path) -> None:
    columns = {
        "money": pa.array([Decimal("12.50")], pa.decimal128(10, 2)),
        "count": pa.array([9007199254740993], pa.int64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    (row,) = load_rows(DataSettings(source=str(tmp_path / "d.parquet")))
    assert (answer_text(row["money"]), answer_text(row["count"])) == ("12.5", "9007199254740993")


def test_floats_of_json_lines_are_written_out(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"a": 1e16, "b": 5.0}))
    (row,) = load_rows(DataSettings(source=str(tmp_path / "d.jsonl")))
    assert (answer_text(row["a"]), answer_text(row["b"])) == ("10000000000000000", "5")
