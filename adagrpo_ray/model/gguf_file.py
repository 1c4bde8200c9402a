"""Finding the GGUF file that `model.path` names: a path, or `package:IMPORT_NAME/path inside it`."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from adagrpo_ray.errors import ModelError

PACKAGE = "package:"
SUFFIX = ".gguf"
_NAMED = re.compile(rf"{PACKAGE}([A-Za-z_]\w*)/(.+)", re.ASCII)
CHUNK = 2**20


def is_gguf(name: str) -> bool:
    """Return whether `model.path` names a GGUF file, which may not exist."""
    return name.startswith(PACKAGE) or (name.lower().endswith(SUFFIX) and not os.path.isdir(name))


def base_name(name: str) -> str:
    """Return a name of the file for other machines: unchanged for a file of a package, a path without its folders."""
    return name if name.startswith(PACKAGE) else Path(name).name


def find_gguf(name: str, setting: str = "model.path") -> Path:
    """Return the path of the file `name`.

    Raises ModelError, which names `setting`, if there is no such file or package, or if the path leaves the package.
    """
    path = _in_package(name, setting) if name.startswith(PACKAGE) else Path(name)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{setting}={name!r} cannot be opened on this machine ({reason}); give the path of a {SUFFIX} file, for "
            f"example one from the Hub by hf download"
        ) from None
    if stat.S_ISDIR(mode):
        raise ModelError(f"{setting}={name!r} is a folder; give the {SUFFIX} file in it")
    if not stat.S_ISREG(mode):
        raise ModelError(f"{setting}={name!r} is no regular file; give a {SUFFIX} file")
    return path


def _in_package(name: str, setting: str) -> Path:
    """Return the path in the package, without importing it: this would run its code and need its requirements."""
    parts = _NAMED.fullmatch(name)
    if parts is None:
        raise ModelError(f"{setting}={name!r} is no file of a package; write {PACKAGE}IMPORT_NAME/path/in/it{SUFFIX}")
    package, inside = parts.groups()
    steps = inside.split("/")
    if os.path.isabs(inside) or {"", ".", ".."} & set(steps) or "\\" in inside or "\0" in inside:
        raise ModelError(f"{setting}={name!r} leaves the package {package!r}; give a path inside it, without '..'")
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if not folders:
        raise ModelError(
            f"{setting}={name!r}: there is no package {package!r} in this environment; install the distribution with "
            f"it, which may have another name: pip install {package.replace('_', '-')}"
        )
    found = [path for folder in folders if os.path.exists(path := Path(folder, *steps))]
    if not found:
        here = sorted(path.relative_to(folder).as_posix() for folder in folders for path in _below(Path(folder)))
        raise ModelError(
            f"{setting}={name!r}: the package {package!r} holds no {inside!r}; "
            + (f"it holds {', '.join(here[:5])}" if here else f"it holds no {SUFFIX} file, give another package")
        )
    return found[0]


def _below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f"*{SUFFIX}") if path.is_file()]


def file_digest(file: Path, name: str) -> str:
    """Return the SHA-256 of the file's content, 64 hex digits. A process reads an unchanged file only once.

    Raises ModelError, which calls the file `name`, if it cannot be read.
    """
    try:
        there = file.stat()
        return _digest_of(str(file.resolve()), there.st_size, there.st_mtime_ns, there.st_ino)
    except OSError as error:
        raise ModelError(f"{name} cannot be read: {error.strerror or error}; make it readable") from None


@lru_cache(maxsize=64)
def _digest_of(file: str, size: int, written: int, inode: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while piece := content.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()
