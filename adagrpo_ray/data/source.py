"""Loading the rows of a data set: files and folders of this machine, or a data set of the Hub."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo_ray.config.data import DataSettings
from adagrpo_ray.config.environments import ENVIRONMENT
from adagrpo_ray.config.reasoning_gym import REASONING_GYM
from adagrpo_ray.data.answers import restore_floats
from adagrpo_ray.data.arithmetic import ARITHMETIC
from adagrpo_ray.data.formats import NAMED_KINDS, Row, kind, read_file
from adagrpo_ray.errors import DataError, first_line

TRAIN = str(DataSettings.model_fields["split"].default)
"""The split of a single file, and of a folder whose files name no split."""

SPLIT_WORDS = {
    TRAIN: (TRAIN, "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words that name a split in the name of a file or folder, as in Hugging Face's `datasets`."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")

NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of `datasets` that hold no rows."""


def load_rows(data: DataSettings) -> Sequence[Row]:
    """Return all rows of `data.source`. Raises DataError if it cannot be read or has none."""
    rows = _rows(data)
    if not len(rows):
        raise DataError(f"data.source={data.source!r} is empty; give a data set with rows")
    return rows


def column(row: Row, name: str, setting: str) -> Any:
    """Return the value of the column `name`, in which a dot reaches into a nested value; None if that is null.

    Raises DataError, which names the setting, the missing column and the nearest existing one, if there is no such
    column.
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
            outer = ".".join(name.split(".")[:depth])
            raise DataError(
                f"{setting}={name!r}: the data has no column {part!r}{f' in {outer!r}' if outer else ''}; {hint}"
            )
        value = value[part]
    return value


def is_generated(source: str) -> bool:
    """Return whether the source is one of generated problems. A file of the same name does not matter."""
    return source in (ARITHMETIC, REASONING_GYM)


def is_hub_name(source: str) -> bool:
    """Return whether the source can be a data set of the Hub: a valid name, neither of generated data nor of a file."""
    if is_generated(source) or source == ENVIRONMENT:
        return False
    path = Path(os.path.expanduser(source))
    return HUB_NAME.fullmatch(source) is not None and kind(path) is None and not os.path.exists(path)


def _rows(data: DataSettings) -> Sequence[Row]:
    source = data.source
    if source == ENVIRONMENT:
        raise DataError(f"data.source={source} has the rows of environment.name, and only a run reads them")
    path = Path(os.path.expanduser(source))
    if "://" in source:
        raise DataError(f"data.source={source!r} is a URL, which is not read; give a file, a folder or a Hub name")
    if os.path.isdir(path):
        return _folder(path, data)
    if os.path.isfile(path):
        if kind(path) is None:
            raise DataError(f"data.source={source!r} is a file of a kind that is not read; give {NAMED_KINDS}")
        return _file(path, data)
    if any(sign in source for sign in "*?["):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
        if not found:
            raise DataError(f"data.source={source!r} matches no file; give a file, a folder or a Hub name")
        refuse_parts(data)
        return _together(found, data)
    if not is_hub_name(source):
        raise DataError(f"data.source={source!r} is no file{_nearest_file(path)}; give a file or a Hub name")
    return _hub(data)


def _file(path: Path, data: DataSettings) -> Sequence[Row]:
    refuse_parts(data)
    return read_file(path)


def refuse_parts(data: DataSettings, *, splits: bool = False) -> None:
    """Raise DataError if the settings select a subset or split of data that has none; with `splits` it has splits."""
    if data.subset is not None:
        raise DataError(f"data.subset={data.subset!r}: {data.source!r} has no subsets; set it to null")
    if data.split != TRAIN and not splits:
        raise DataError(
            f"data.split={data.split!r}: {data.source!r} has no splits; name the file of that split as data.source and "
            f"leave data.split={TRAIN!r}, or give a folder whose files are named by their splits"
        )


def _folder(folder: Path, data: DataSettings) -> Sequence[Row]:
    """Return the rows of the files of `data.split` in a folder, or of a data set that `datasets` saved there."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved(folder, data)
    if data.subset is not None or has_configurations(folder):  # `datasets` reads them from its README.md
        return _hub(data)
    files = [
        path
        for pattern in ("*", "*/*", "*/*/*")
        for path in folder.glob(pattern)
        if kind(path) is not None and path.name not in NOT_DATA and path.is_file() and not _hidden(path, folder)
    ]
    if not files:
        raise DataError(f"data.source={data.source!r} is a folder without a file to read; it must hold {NAMED_KINDS}")
    by_split: dict[str | None, list[Path]] = {}
    for path in sorted(files):
        by_split.setdefault(_split_of(path.relative_to(folder), data.split), []).append(path)
    found = by_split.get(_split_name(data.split))
    if found is None and data.split == TRAIN and list(by_split) == [None]:
        found = by_split[None]
    if found is None:
        there = ", ".join(sorted(name for name in by_split if name)) or f"only {TRAIN}"
        raise DataError(
            f"data.split={data.split!r}: the folder {data.source!r} has no file of that split; it has {there}"
        )
    return _together(found, data)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)


def _split_name(split: str) -> str:
    """Return the standard name of a split, given any of its words."""
    return next((name for name, words in SPLIT_WORDS.items() if split in words), split)


def _split_of(path: Path, selected: str) -> str | None:
    """Return the split that the path of a file names last, nearest to the name of the file; None if it names none."""
    words = {word: name for name, all_words in SPLIT_WORDS.items() for word in all_words}
    words[selected.lower()] = _split_name(selected)
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    named = re.findall(rf"(?<![a-z0-9])({pattern})(?![a-z])", path.as_posix().lower())
    return words[named[-1]] if named else None


def _together(files: Sequence[Path], data: DataSettings) -> Sequence[Row]:
    """Return the rows of several files of one kind, one file after the other."""
    other = next((path for path in files if kind(path) != kind(files[0])), None)
    if other is not None:
        raise DataError(
            f"data.source={data.source!r} has files of two kinds, {str(files[0])!r} and {str(other)!r}; name one of "
            "them, or a pattern such as 'folder/*.jsonl'"
        )
    if kind(files[0]) is None:
        raise DataError(f"data.source={data.source!r}: {str(files[0])!r} is not read; give {NAMED_KINDS}")
    return [row for path in files for row in read_file(path)]


def has_configurations(folder: Path) -> bool:
    """Return whether the README.md of a folder names configurations, as that of a data set of the Hub does."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    front = re.match(r"---\n(.*?)\n---\n", head, re.DOTALL)
    return front is not None and re.search(r"^configs:", front[1], re.MULTILINE) is not None


def _saved(folder: Path, data: DataSettings) -> Sequence[Row]:
    """Return the rows of a data set that `save_to_disk` of `datasets` wrote."""
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # datasets raises many errors for bad files
        raise DataError(f"data.source={data.source!r} cannot be loaded: {first_line(error)}; save it again") from None
    if not isinstance(found, DatasetDict):
        refuse_parts(data)
        return _restored(found)
    refuse_parts(data, splits=True)
    if data.split not in found:
        raise DataError(
            f"data.split={data.split!r}: {data.source!r} has no such split; it has {', '.join(map(str, found))}"
        )
    return _restored(found[data.split])


def _hub(data: DataSettings) -> Sequence[Row]:
    try:
        return hub_rows(os.path.expanduser(data.source), data.subset, data.split)
    except DataError as error:
        raise DataError(
            f"data.source={data.source!r} (subset {data.subset!r}, split {data.split!r}) cannot be loaded: {error}; "
            "give 'arithmetic', 'reasoning_gym', a file, a folder, or a Hub name"
        ) from None


def hub_rows(source: str, subset: str | None, split: str, columns: Sequence[str] | None = None) -> Sequence[Row]:
    """Return the rows of a data set of the Hub, or of a folder that is a copy of one; of `columns` alone if given.

    Raises DataError, with the first line of the reason alone, if it cannot be loaded.
    """
    from datasets import load_dataset
    from datasets.utils import logging

    logging.set_verbosity(logging.CRITICAL)  # its errors have the same content as its log
    try:
        rows = load_dataset(source, subset, split=split)
        if columns is not None:  # others may be images, which need further packages
            rows = rows.select_columns([name for name in columns if name in rows.column_names])
    except Exception as error:  # datasets raises many errors for bad files
        raise DataError(first_line(error.__cause__ or error)) from None
    return _restored(rows)


def _restored(rows: Any) -> Sequence[Row]:
    """Return the rows of a data set of `datasets`, with floats as they were written."""
    restore = restore_floats(rows.features.arrow_schema)
    return rows if restore is None else [restore(row) for row in rows]


def _nearest_file(path: Path) -> str:
    there = [p.name for p in path.parent.iterdir() if kind(p)] if os.path.isdir(path.parent) else []
    near = difflib.get_close_matches(path.name, there, n=1)
    return f" (there is {near[0]!r})" if near else ""
