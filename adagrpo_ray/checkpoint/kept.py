"""Checkpoints in a folder that may be at a URL. They are written and read on this machine and copied to the URL.

The files are copied one by one, `checksums.json` last. `latest` and `best` are changed after all files are copied. So
if a copy is interrupted, the earlier checkpoints stay in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.checkpoint.files import BEST, CHECKSUMS, LATEST
from adagrpo_ray.errors import CheckpointError, ResourceError
from adagrpo_ray.storage import places as storage


def save(
    folder: str,
    step: int,
    contents: Mapping[str, Any],
    save_total_limit: int,
    accuracies: Mapping[int, float] | None = None,
) -> None:
    """Save a checkpoint to a path or a URL, as `checkpoint.save`. If it fails, earlier checkpoints are unchanged."""
    if not storage.is_url(folder):
        return checkpoint.save(Path(folder), step, contents, save_total_limit, accuracies)
    with _writing(folder), storage.scratch() as local:
        checkpoint.save(local, step, contents, save_total_limit)
        path = next(path for path in local.iterdir() if checkpoint.is_checkpoint(path))
        found = storage.files(folder)
        there = _names(found)
        complete = [name for name in there if f"{name}/{CHECKSUMS}" in found]
        latest = (storage.find(folder, LATEST) or "").strip()
        stays, best = checkpoint.stay(complete, latest, path.name, save_total_limit, accuracies or {})
        url = storage.join(folder, path.name)
        storage.remove(url)  # exists only if a run resumed from an earlier step, or died during a copy
        names = sorted(storage.below(path), key=lambda name: name == CHECKSUMS)
        storage.push(path, url, names)
        storage.push(local, folder, [LATEST])
        if best is not None:
            storage.leave(folder, BEST, f"{best}\n")
        elif BEST in found:
            storage.clear(folder, BEST)
        for name in there - stays:
            storage.remove(storage.join(folder, name))


def load(path: str) -> dict[str, Any]:
    """Load a checkpoint from a path or a URL, as `checkpoint.load`."""
    if not storage.is_url(path):
        return checkpoint.load(Path(path))
    with storage.scratch() as local:
        fetch(path, local / path.rpartition("/")[2])
        return checkpoint.load(local / path.rpartition("/")[2])


def fetch(url: str, path: Path) -> None:
    """Copy the files of a checkpoint that exist at `url` to a local path. Raises CheckpointError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        storage.pull(url, path, sorted(storage.files(url)))
    except (OSError, ResourceError) as error:
        raise CheckpointError(f"cannot read the checkpoint {url}: {error}") from error


def outline(url: str, folder: Path) -> None:
    """Create a local copy of the folder of checkpoints at `url` with `latest` and empty checkpoints, to select one.

    Does nothing if no checkpoint at the URL is complete.
    """
    found = storage.files(url)
    if any(name.endswith(f"/{CHECKSUMS}") for name in found):
        for name in _names(found):
            (folder / name).mkdir(parents=True)
        storage.pull(url, folder, [LATEST] if LATEST in found else [])


def set_latest(path: str) -> None:
    """Make the checkpoint at a URL the newest one, as `checkpoint.set_latest`."""
    folder, _, name = path.rpartition("/")
    with _writing(path):
        storage.leave(folder, LATEST, f"{name}\n")


def named(place: str) -> str:
    """Return the checkpoint that the file `best` at `place` names; `place` itself if it is another path or URL."""
    folder, _, name = place.rpartition("/")
    if name != BEST or Path(place).is_dir():
        return place
    text = storage.find(folder, BEST)
    if text is not None and not checkpoint.NAME.fullmatch(text.strip()):
        raise CheckpointError(f"{place} does not name a checkpoint; give the folder of a checkpoint next to it")
    return place if text is None else storage.join(folder, text.strip())


def _names(found: set[str]) -> set[str]:
    """Return the names of the checkpoints that these files are part of."""
    first = {name.partition("/")[0] for name in found if "/" in name}
    return {name for name in first if checkpoint.is_checkpoint(Path(name))}


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except ResourceError as error:
        raise CheckpointError(f"no checkpoint was kept in {url}, earlier ones are unchanged: {error}") from error
