"""Checkpoints on disk: folders of JSON and safetensors files, each complete or absent.

`step-000012/` has the files of a checkpoint and `checksums.json`, the SHA-256 of each of them. It is written under
another name (`.part`), forced to disk and renamed. It is in force as soon as the file `latest` names it. The file
`best` names the checkpoint with the best held-out accuracy, if that is kept. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as unpack_arrays
from safetensors.numpy import save as pack_arrays

from adagrpo_ray.errors import CheckpointError

CHECKSUMS, LATEST, BEST, STATE = "checksums.json", "latest", "best", "state.json"
WEIGHTS = "adapter.safetensors"
"""The adapter in float32, with the keys of PEFT's files."""
NAME = re.compile(r"step-\d{6,}")


@dataclass(frozen=True)
class Progress:
    """The trainer's part of a checkpoint, all of it JSON values.

    `sizes` has the bytes of the files of lines in the run folder.
    `settings` has the settings that a resumed run must keep.
    """

    step: int
    sizes: dict[str, int]
    settings: dict[str, Any]


def save(
    folder: Path,
    step: int,
    contents: Mapping[str, Any],
    save_total_limit: int,
    accuracies: Mapping[int, float] | None = None,
) -> None:
    """Write `contents` into `folder` as the checkpoint of `step`, then remove the checkpoints that do not `stay`.

    `contents` has JSON values under names that end in .json, and numpy arrays by name under names in .safetensors.
    `accuracies` has the held-out accuracy by step. It is given if the best checkpoint is kept in addition to the newest
    `save_total_limit`.
    Raises CheckpointError if the folder cannot be written. Earlier checkpoints are then unchanged.
    """
    path = folder / f"step-{step:06d}"
    with _writing(path):
        for left in folder.glob("step-*.part"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        kept, best = stay(
            (other.name for other in _all(folder)), _latest(folder), path.name, save_total_limit, accuracies or {}
        )
        _remove(path)  # exists only if a run resumed from an earlier step and reached this one again
        with _made_aside(path) as aside:
            for name, content in contents.items():
                _write(aside / name, _to_json(content) if name.endswith(".json") else pack_arrays(content))
            _write(aside / CHECKSUMS, _checksums(aside))
        set_latest(path)
        if best is None:
            (folder / BEST).unlink(missing_ok=True)
        else:
            _leave(folder / BEST, best)
        for other in _all(folder):
            if other.name not in kept:
                _remove(other)


def stay(
    there: Iterable[str], latest: str, new: str, save_total_limit: int, accuracies: Mapping[int, float]
) -> tuple[set[str], str | None]:
    """Return the names of the checkpoints to keep after `new` was added to those in `there`, and that of the best one.

    `latest` is the newest in `there`. The best one has the highest accuracy in `accuracies`, by step; of equal ones it
    is the first. It is None if no checkpoint has an accuracy.
    """
    valid = upto({*upto(there, latest), new}, new)
    candidates = [name for name in reversed(valid) if _step(name) in accuracies]
    best = max(candidates, key=lambda name: accuracies[_step(name)], default=None)
    return {*valid[:save_total_limit], *([best] if best else [])}, best


def load(path: Path) -> dict[str, Any]:
    """Return the contents of the checkpoint at `path` by file name. Raises CheckpointError if a file is damaged."""
    check(path)
    try:
        return {
            file.name: json.loads(file.read_bytes()) if file.suffix == ".json" else unpack_arrays(file.read_bytes())
            for file in path.iterdir()
        }
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path} ({error}); take another one") from error


def progress(path: Path) -> Progress:
    """Return the trainer's part of the checkpoint at `path`. Raises CheckpointError if it cannot be read."""
    try:
        state = json.loads((path / STATE).read_bytes())
        return Progress(**{field.name: state[field.name] for field in fields(Progress)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {path / STATE} ({error!r}); take another checkpoint") from error


def newest(folder: Path, notify: Callable[[str], None], verify: Callable[[Path], None] | None = None) -> Path | None:
    """Return the newest good checkpoint in `folder`; None if there are no checkpoints.

    `verify` raises CheckpointError if a checkpoint is not good, as `check` does. `notify` gets a notice for each
    checkpoint that is passed over. Raises CheckpointError if there are checkpoints and none is good.
    """
    paths = _upto(folder, _latest(folder))
    for path in paths:
        try:
            (verify or check)(path)
            return path
        except CheckpointError as error:
            notify(f"passed over: {error}")
    if paths:
        raise CheckpointError(
            f"all {len(paths)} checkpoints in {folder} are damaged; restore one from a copy, "
            "or start again under another run.name"
        )
    return None


def check(path: Path) -> None:
    """Raise CheckpointError unless every file of the checkpoint at `path` has the checksum that it was written with."""
    try:
        good = (path / CHECKSUMS).read_bytes() == _checksums(path)
    except OSError:
        good = False
    if not good:
        raise CheckpointError(f"the checkpoint {path} is damaged, incomplete or missing; an older one may be good")


def is_checkpoint(path: PurePath) -> bool:
    """Return whether `path` has the name of a checkpoint."""
    return NAME.fullmatch(path.name) is not None


def set_latest(path: Path) -> None:
    """Make `path` the newest checkpoint of its folder. Later ones are ignored, and removed by the next `save`."""
    _leave(path.with_name(LATEST), path.name)


def _leave(file: Path, name: str) -> None:
    """Write the name of a checkpoint to `file`."""
    with _writing(file):
        _write(_aside(file), f"{name}\n".encode())
        _aside(file).replace(file)
        _sync(file.parent)


@contextmanager
def _made_aside(path: Path) -> Iterator[Path]:
    """Give the block a folder that is renamed to `path` at the end, or removed if the disk fails."""
    aside = _aside(path)
    try:
        aside.mkdir(parents=True)
        yield aside
        _sync(aside)
        aside.rename(path)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {path} ({error.strerror or error}); free or unlock that place") from error


def _latest(folder: Path) -> str:
    try:
        return (folder / LATEST).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _all(folder: Path) -> list[Path]:
    """Return the paths in `folder` that have the name of a checkpoint."""
    return [path for path in folder.glob("step-*") if is_checkpoint(path)]


def _upto(folder: Path, name: str) -> list[Path]:
    """Return the checkpoints in `folder`, newest first, from the one called `name` to the oldest; else all."""
    return [folder / other for other in upto((path.name for path in _all(folder)), name)]


def upto(names: Iterable[str], name: str) -> list[str]:
    """Return the names of checkpoints, newest first, from `name` to the oldest; all if `name` is none of them."""
    ordered = sorted(names, key=_step, reverse=True)
    return ordered[ordered.index(name) :] if name in ordered else ordered


def _step(name: str) -> int:
    """Return the step after which the checkpoint of that name was made."""
    return int(name.partition("-")[2])


def _checksums(folder: Path) -> bytes:
    """Return the content of checksums.json for the files that are in `folder` now."""
    sums = {}
    for file in sorted(folder.iterdir()):
        if file.name != CHECKSUMS:
            with file.open("rb") as content:
                sums[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return _to_json(sums)


def _to_json(content: Any) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode()  # floats are read back exactly


def _write(file: Path, data: bytes) -> None:
    with file.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _sync(folder: Path) -> None:
    """Force the names in `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a checkpoint under another name, so that a part of it is never taken for a checkpoint."""
    if path.exists():
        shutil.rmtree(_aside(path), ignore_errors=True)
        path.rename(_aside(path))
        shutil.rmtree(_aside(path))


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
