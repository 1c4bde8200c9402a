"""Checkpoints on disk: folders of JSON and safetensors that are whole, or not there.

`step-000012/` holds its files and `checksums.json`, the SHA-256 of each other file. It is written aside (`.part`),
forced to disk and renamed; then `latest` names it, and it counts from there on. `best` names the one with the best
held-out accuracy, where that is kept. Nothing is ever pickled.
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
"""The adapter in float32, keyed as in PEFT's files."""
NAME = re.compile(r"step-\d{6,}")


@dataclass(frozen=True)
class Progress:
    """What the trainer says of a run at a checkpoint, all of it JSON.

    `sizes` are the bytes of the run folder's files of lines, `settings` those that must not change when the run
    goes on, `retries` what resampling has cost and brought so far.
    """

    step: int
    weight_version: int
    sizes: dict[str, int]
    settings: dict[str, Any]
    retries: dict[str, Any]


def save(
    folder: Path,
    step: int,
    contents: Mapping[str, Any],
    save_total_limit: int,
    accuracies: Mapping[int, float] | None = None,
) -> None:
    """Write `contents` into `folder` as the checkpoint of `step`, then remove all but those that `stay`.

    `accuracies` are those on the held-out prompts by step, if the best checkpoint is to stay beside the newest
    `save_total_limit`.
    A name of `contents` ends in .json and has JSON values, or in .safetensors and has numpy arrays by name.
    Raises CheckpointError where the folder cannot be written; earlier checkpoints are then as they were.
    """
    path = folder / f"step-{step:06d}"
    with _writing(path):
        for left in folder.glob("step-*.part"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        kept, best = stay(
            (other.name for other in _all(folder)), _latest(folder), path.name, save_total_limit, accuracies or {}
        )
        _remove(path)  # there only where a run was taken back and has come here again
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
    """The checkpoints that stay when `new` joins those that are there, whose newest is `latest`; the best of them.

    The best has the highest accuracy in `accuracies`, by step; of equal ones it is the first. None where none has any.
    """
    counting = upto({*upto(there, latest), new}, new)
    candidates = [name for name in reversed(counting) if _step(name) in accuracies]
    best = max(candidates, key=lambda name: accuracies[_step(name)], default=None)
    return {*counting[:save_total_limit], *([best] if best else [])}, best


def load(path: Path) -> dict[str, Any]:
    """The files of the checkpoint at `path` by name; CheckpointError where one is not as it was written."""
    check(path)
    try:
        return {
            file.name: json.loads(file.read_bytes()) if file.suffix == ".json" else unpack_arrays(file.read_bytes())
            for file in path.iterdir()
        }
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path} ({error}); take another one") from error


def progress(path: Path) -> Progress:
    """The trainer's part of the checkpoint at `path`."""
    try:
        state = json.loads((path / STATE).read_bytes())
        return Progress(**{field.name: state[field.name] for field in fields(Progress)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {path / STATE} ({error!r}); take another checkpoint") from error


def newest(folder: Path, tell: Callable[[str], None], verify: Callable[[Path], None] | None = None) -> Path | None:
    """The newest good checkpoint in `folder`, None where there is none of any kind.

    `verify` raises CheckpointError for one that is not good, as `check` does. Says of each such one that it is passed
    over; CheckpointError where no good one is left.
    """
    paths = _upto(folder, _latest(folder))
    for path in paths:
        try:
            (verify or check)(path)
            return path
        except CheckpointError as error:
            tell(f"passed over: {error}")
    if paths:
        raise CheckpointError(
            f"all {len(paths)} checkpoints in {folder} are damaged; bring one back from a copy, "
            "or start again under another run.name"
        )
    return None


def check(path: Path) -> None:
    """CheckpointError unless every file of the checkpoint at `path` is, byte for byte, as it was written."""
    try:
        good = (path / CHECKSUMS).read_bytes() == _checksums(path)
    except OSError:
        good = False
    if not good:
        raise CheckpointError(f"the checkpoint {path} is damaged, incomplete or not there; an older one may be good")


def is_checkpoint(path: PurePath) -> bool:
    """Whether `path` has the name of a checkpoint."""
    return NAME.fullmatch(path.name) is not None


def set_latest(path: Path) -> None:
    """Make `path` the newest checkpoint of its folder; later ones count no more, and go at the next `save`."""
    _leave(path.with_name(LATEST), path.name)


def _leave(file: Path, name: str) -> None:
    """Let `file` say the name of a checkpoint."""
    with _writing(file):
        _write(_aside(file), f"{name}\n".encode())
        _aside(file).replace(file)
        _sync(file.parent)


@contextmanager
def _made_aside(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` at the end of the block, or gives its space back where that fails."""
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
    """Everything in `folder` that is named like a checkpoint."""
    return [path for path in folder.glob("step-*") if is_checkpoint(path)]


def _upto(folder: Path, name: str) -> list[Path]:
    """The checkpoints in `folder` from the one of that name on to older ones; all where it is not there."""
    return [folder / other for other in upto((path.name for path in _all(folder)), name)]


def upto(names: Iterable[str], name: str) -> list[str]:
    """Names of checkpoints from `name` on to older ones; all, newest first, where it is none of them."""
    ordered = sorted(names, key=_step, reverse=True)
    return ordered[ordered.index(name) :] if name in ordered else ordered


def _step(name: str) -> int:
    """The step that the checkpoint of that name was made after."""
    return int(name.partition("-")[2])


def _checksums(folder: Path) -> bytes:
    """What belongs into `folder`'s checksums.json, for the files that are there now."""
    sums = {}
    for file in sorted(folder.iterdir()):
        if file.name != CHECKSUMS:
            with file.open("rb") as content:
                sums[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return _to_json(sums)


def _to_json(content: Any) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode()  # floats come back exactly as they were


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
    """Remove a checkpoint so that no half of it is ever taken for one."""
    if path.exists():
        shutil.rmtree(_aside(path), ignore_errors=True)
        path.rename(_aside(path))
        shutil.rmtree(_aside(path))


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
