"""Local files and folders of data: all supported kinds, splits, and one clear error for others."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adagrpo_ray.config.data import DataSettings
from adagrpo_ray.data.source import is_hub_name, load_rows
from adagrpo_ray.errors import DataError

ROWS = [{"prompt": "1+1", "solution": "2"}, {"prompt": 'say "a, b"\nand c', "solution": "007"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'prompt,solution\n1+1,2\n"say ""a, b""\nand c",007\n'


def rows(source: Path | str, **settings: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in load_rows(DataSettings(source=str(source), **settings))]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", LINES),
        ("D.JSONL", LINES),
        ("d.ndjson", LINES),
        ("d.json", json.dumps(ROWS)),
        ("d.json", json.dumps(ROWS, indent=2)),
        ("d.json", LINES),
        ("d.JSON", "\ufeff" + LINES.replace("\n", "\r\n")),
        ("d.csv", CSV),
        ("d.csv", "\ufeff" + CSV),
        ("d.csv", CSV.replace("prompt,solution", " prompt , solution ")),
        ("d.csv", 'prompt;solution\n1+1;2\n"say ""a, b""\nand c";007\n'),
        ("d.tsv", 'prompt\tsolution\n1+1\t2\n"say ""a, b""\nand c"\t007\n'),
        ("d.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("d.csv.GZ", gzip.compress(CSV.encode(), mtime=0)),
    ],
)
def test_files_of_every_kind_give_the_same_rows(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert rows(write(tmp_path / name, content)) == ROWS


def test_values_of_csv_are_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "prompt,solution,note\n007,1e3,\nNA,TRUE,2024-01-02\n")
    assert rows(path) == [
        {"prompt": "007", "solution": "1e3", "note": None},
        {"prompt": "NA", "solution": "TRUE", "note": "2024-01-02"},
    ]


def test_cell_may_be_long(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", f'prompt,solution\n"{"x" * 200_000}",1\n')
    assert len(rows(path)[0]["prompt"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("d.csv", "prompt,prompt\n1,2\n", "two columns of the name 'prompt'"),
        ("d.csv", "prompt,solution\n1,2\n1\n", r"d\.csv, line 3 has 1 cells and the first line 2"),
        ("d.csv", 'prompt,solution\n"1,2\n', r"d\.csv, line 2 is not CSV"),
        ("d.csv", "prompt,solution\n", "is empty"),
        ("d.csv", "", "is empty"),
        ("d.csv", b"prompt,solution\n\xe9,1\n", r"cannot read .*d\.csv: .*UTF-8"),
        ("d.json", "", "is empty"),
        ("d.json", "[]", "is empty"),
        ("d.json", "[1]", r"d\.json, entry 1 holds a int"),
        ("d.json", "5", r"d\.json, entry 1 holds a int"),
        ("d.json", '[{"prompt": "1"},]', r"d\.json is not JSON \(.*line 1"),
        ("d.json", '{"prompt": "1"}\n{"prompt"}\n', r"d\.json, line 2 is not JSON"),
        ("d.json", '[{"a": 1, "a": 2}]', r"d\.json is not JSON \(it has the key 'a' twice\)"),
        ("d.jsonl", '{"a": {"b": 1, "b": 2}}', r"d\.jsonl, line 1 is not JSON \(it has the key 'b' twice\)"),
        ("d.json", "[" * 100_000, r"d\.json is not JSON"),
        ("d.jsonl.gz", LINES, r"cannot read .*d\.jsonl\.gz"),
        ("d.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], r"cannot read .*d\.jsonl\.gz"),
        ("d.txt", LINES, r"data\.source='.*d\.txt' is a file of a kind that is not read; give \.jsonl"),
        ("d", LINES, r"d' is a file of a kind that is not read"),
        ("d.parquet.gz", LINES, "is a file of a kind that is not read"),
    ],
)
def test_error_names_unreadable_file(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        rows(write(tmp_path / name, content))


def test_parquet_maps_are_objects_and_duplicate_columns_refused(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.string())
    pq.write_table(pa.table({"m": pa.array([[("truth", "2")]], kind)}), tmp_path / "d.parquet")
    assert rows(tmp_path / "d.parquet") == [{"m": {"truth": "2"}}]
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="two columns of the name 'a'"):
        rows(tmp_path / "e.parquet")


# --- splits ---


def test_file_has_no_splits_and_no_subsets(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", LINES)
    for split in ("test", "train[:1]", "no-such"):
        with pytest.raises(DataError, match=r"data\.split='.*': '.*d\.jsonl' has no splits"):
            rows(path, split=split)
    with pytest.raises(DataError, match=r"data\.subset='main': '.*d\.jsonl' has no subsets"):
        rows(path, subset="main")


@pytest.mark.parametrize(
    ("files", "split", "found"),
    [
        ({"train.jsonl": "a", "test.jsonl": "b"}, "train", "a"),
        ({"train.jsonl": "a", "test.jsonl": "b"}, "test", "b"),
        ({"data/train-00000-of-00002.jsonl": "a", "data/train-00001-of-00002.jsonl": "b"}, "train", "ab"),
        ({"train.jsonl": "a", "my_eval.jsonl": "b"}, "test", "b"),
        ({"train.jsonl": "a", "dev.jsonl": "b"}, "validation", "b"),
        ({"Train/a.jsonl": "a", "Test/a.jsonl": "b"}, "test", "b"),
        ({"train.jsonl": "a", "hard-00000-of-00001.jsonl": "b"}, "hard", "b"),
        ({"part-0.jsonl": "a", "part-1.jsonl": "b"}, "train", "ab"),
        ({"train.jsonl": "a", "other.jsonl": "b"}, "train", "a"),
        ({"train.jsonl": "a", ".cache/train.jsonl": "b", "dataset_infos.json": "c"}, "train", "a"),
        ({"latest.jsonl": "a", "test.jsonl": "b"}, "test", "b"),
    ],
)
def test_folder_gives_files_of_selected_split(tmp_path: Path, files: dict[str, str], split: str, found: str) -> None:
    for name, text in files.items():
        write(tmp_path / name, json.dumps({"prompt": text}) + "\n")
    assert "".join(row["prompt"] for row in rows(tmp_path, split=split)) == found


def test_folder_of_csv_keeps_texts(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", CSV)
    assert rows(tmp_path) == ROWS


def test_error_for_missing_split_lists_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", LINES)
    write(tmp_path / "test.jsonl", LINES)
    with pytest.raises(DataError, match=r"data\.split='tset': the folder '.*' has no file .*; it has test, train"):
        rows(tmp_path, split="tset")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"data\.split='train': .* it has test"):
        rows(tmp_path)


def test_folder_with_two_kinds_of_one_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", LINES)
    write(tmp_path / "train.csv", CSV)
    with pytest.raises(DataError, match=r"files of two kinds, '.*train\.csv' and '.*train\.jsonl'"):
        rows(tmp_path)


def test_saved_datasets_are_read_by_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS[:1]), "test": Dataset.from_list(ROWS[1:])}).save_to_disk(
        tmp_path / "both"
    )
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert rows(tmp_path / "both", split="test") == ROWS[1:]
    assert rows(tmp_path / "one") == ROWS
    with pytest.raises(DataError, match=r"data\.split='dev': .* it has train, test"):
        rows(tmp_path / "both", split="dev")
    with pytest.raises(DataError, match=r"data\.split='dev'.* has no splits"):
        rows(tmp_path / "one", split="dev")
    for name in ("both", "one"):
        with pytest.raises(DataError, match=r"data\.subset='main'.* has no subsets"):
            rows(tmp_path / name, subset="main")


# --- names ---


def test_patterns_and_home_folder_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a1.jsonl", LINES)
    write(tmp_path / "a2.jsonl", LINES)
    assert rows(tmp_path / "a*.jsonl") == ROWS * 2
    with pytest.raises(DataError, match=r"b\*\.jsonl' matches no file"):
        rows(tmp_path / "b*.jsonl")
    with pytest.raises(DataError, match=r"data\.split='test'"):
        rows(tmp_path / "a*.jsonl", split="test")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rows("~/a1.jsonl") == ROWS


@pytest.mark.parametrize("name", ["s3://bucket/d.jsonl", "https://example.org/d.csv", "hf://datasets/a/b"])
def test_url_is_refused_as_url(name: str) -> None:
    with pytest.raises(DataError, match="is a URL, which is not read"):
        rows(name)


@pytest.mark.parametrize("name", ["./nothing", "/no/such", "a/b/c", "~/none", "d.csv", "D.Json.gz", "../no/such"])
def test_missing_path_is_not_requested_from_hub(name: str) -> None:
    with pytest.raises(DataError, match=r"is no file.*; give a file or a Hub name"):
        rows(name)


def test_names_of_hub_data_sets_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("mine")
    assert is_hub_name("openai/gsm8k")
    assert is_hub_name("squad")
    assert not any(map(is_hub_name, ("mine", "a/b/c", "x.jsonl", "./x", "x.csv.gz")))
