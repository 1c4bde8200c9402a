"""Folders at paths or fsspec URLs (s3://bucket/path, gs://...), for runs on machines that share no disk.

Every `folder` here is a path or a URL; file:///path is the path. Files are written in one piece, and a small file is
one object. The fsspec package of the URL finds credentials in the environment.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from adagrpo_ray.config.secrets import holds_secret
from adagrpo_ray.errors import ConfigError, ResourceError
from adagrpo_ray.storage.cache import cache_folder

PAUSES_S = (0.5, 2.0)
"""Seconds before each further try of an operation that failed."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of disks that another try does not fix."""

T = TypeVar("T")


def is_url(folder: str) -> bool:
    """Return whether `folder` is a URL, other than file:// of a path."""
    return "://" in folder and not folder.startswith("file://")


def plain(folder: str) -> str:
    """Return `folder`; a file:// URL as its path."""
    return unquote(urlsplit(folder).path) if folder.startswith("file://") else folder


def join(folder: str, *names: str) -> str:
    """Return the path or URL of `names` in `folder`."""
    return "/".join([folder.rstrip("/"), *names]) if is_url(folder) else str(Path(plain(folder), *names))


def fresh(url: str) -> Path:
    """Return a new empty local folder with the name of `url`, for a run that is kept there."""
    folder = cache_folder() / "runs" / sha256(url.encode()).hexdigest()[:16] / url.rpartition("/")[2]
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder


def files(url: str) -> set[str]:
    """Return the names of all files below `url`, relative to it; none if it does not exist."""
    system, path = _system(url)

    def find() -> set[str]:
        system.invalidate_cache()  # other machines write to the URL too
        try:
            return {name[len(path) :].strip("/") for name in system.find(path)}
        except FileNotFoundError:
            return set()

    return _tried(find, f"list {url}")


def push(folder: Path, url: str, names: list[str]) -> None:
    """Copy files of a local folder to `url`, in the order of `names`. Raises ResourceError if that fails."""
    system, path = _system(url)
    for name in names:
        _tried(partial(system.put_file, str(folder / name), f"{path}/{name}"), f"write {url}/{name}")


def pull(url: str, folder: Path, names: list[str]) -> None:
    """Copy files at `url` into a local folder. Raises ResourceError if that fails."""
    system, path = _system(url)
    for name in names:
        with writing(folder):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _tried(partial(system.get_file, f"{path}/{name}", str(folder / name)), f"read {url}/{name} into {folder}")


def remove(url: str) -> None:
    """Remove `url` and all files below it, if it exists."""
    system, path = _system(url)
    for name in files(url):
        _tried(partial(system.rm_file, f"{path}/{name}"), f"remove {url}/{name}")


@contextmanager
def writing(path: Path, otherwise: str = "") -> Iterator[None]:
    """Raise ResourceError, which names the local `path`, if the block raises OSError.

    `otherwise` is a second remedy for the message.
    """
    try:
        yield
    except OSError as error:
        other = f", or {otherwise}" if otherwise else ""
        raise ResourceError(f"cannot write {path} ({_why(error)}); free or unlock that place{other}") from error


@contextmanager
def outgoing(folder: str) -> Iterator[Path]:
    """Give the block a local folder to write into, and move its files to `folder` at the end, each in one piece.

    Raises ResourceError, which names the folder, if the files cannot be written.
    """
    if is_url(folder):
        with scratch() as local:
            with writing(local):
                yield local
            push(local, folder, below(local))
        return
    path = Path(plain(folder))
    aside = path.with_name(f"{path.name}.part")
    try:
        with writing(path):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            yield aside
            for name in below(aside):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).replace(path / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """Give the block a local folder, which is removed at the end."""
    parent = cache_folder() / "scratch"
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(dir=parent)
    with made as folder:
        yield Path(folder)


def below(folder: Path) -> list[str]:
    """Return the sorted names of all files below a local folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def stamps(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Return size in bytes and time of the last change in ns of all files below a local folder, by name."""
    found = {name: (folder / name).stat() for name in below(folder) if not name.endswith(".part")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def leave(folder: str, name: str, text: str) -> None:
    """Write a small text, which `find` returns, also on other machines."""
    if is_url(folder):
        system, path = _system(folder)
        _tried(lambda: system.pipe_file(f"{path}/{name}", text.encode()), f"write {folder}/{name}")
        return
    file = Path(plain(folder), name)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f"{name}.part")
        aside.write_text(text, encoding="utf-8")
        aside.replace(file)


def find(folder: str, name: str) -> str | None:
    """Return the text that `leave` wrote under that name; None if there is none."""
    if not is_url(folder):
        try:
            return Path(plain(folder), name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ResourceError(f"cannot read {join(folder, name)} ({_why(error)}); make it readable") from error
    system, path = _system(folder)

    def read() -> str | None:
        try:
            return bytes(system.cat_file(f"{path}/{name}")).decode(errors="replace")
        except FileNotFoundError:
            return None

    return _tried(read, f"read {folder}/{name}")


def clear(folder: str, name: str) -> None:
    """Remove the text that `leave` wrote under that name, if it exists."""
    if not is_url(folder):
        with writing(Path(plain(folder))):
            Path(plain(folder), name).unlink(missing_ok=True)
        return
    system, path = _system(folder)

    def delete() -> None:
        with suppress(FileNotFoundError):
            system.rm_file(f"{path}/{name}")

    _tried(delete, f"remove {folder}/{name}")


def check(folder: str, option: str) -> None:
    """Raise ConfigError, which names `option`, if `folder` is a URL that cannot be a folder. Contacts no server."""
    if is_url(folder):
        _system(folder, f"{option}=")


def probe(folder: str) -> None:
    """Write, read back and remove a small file. Raises ConfigError, which names the folder, if any of it fails."""
    name, token = f"probe-{uuid4().hex}", uuid4().hex
    try:
        leave(folder, name, token)
        found = find(folder, name)
        clear(folder, name)
    except ResourceError as error:
        raise ConfigError(f"{folder!r} cannot be used: {error}") from error
    if found != token:
        raise ConfigError(f"{folder!r} does not return the text that was written there; use another place")


def _system(url: str, of: str = "") -> tuple[Any, str]:
    """Return the file system of a URL and the path in it.

    Raises ConfigError, which begins with `of` and the URL, if there is none.
    """
    import fsspec  # takes a moment, which a run on plain paths does not need

    protocol = url.partition("://")[0]
    if holds_secret(url):
        raise ConfigError(f"{of}{protocol}://... holds a user, a password or a query; leave them to the environment")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(protocol)
        needed = f"the package {extra}: pip install {extra}" if extra else f"a package ({error})"
        raise ConfigError(f"{of}{url!r}: {protocol}:// needs {needed}") from error
    except ValueError as error:
        raise ConfigError(f"{of}{url!r}: {error}; use a path, or a URL such as s3://bucket/path") from error
    except Exception as error:  # credentials are missing or unreadable; each package has its own errors for that
        raise ConfigError(f"{of}{url!r} cannot be used ({_why(error)}); check the credentials") from error
    if not path.strip("/"):
        raise ConfigError(f"{of}{url!r} names no bucket; write {protocol}://bucket/path")
    return system, path.rstrip("/")


def _tried(action: Callable[[], T], purpose: str) -> T:
    """Return the result of `action`, tried again if it fails. Raises ResourceError, "cannot `purpose`", at the end."""
    for pause in (*PAUSES_S, None):
        try:
            return action()
        except Exception as error:  # packages for fsspec raise many errors besides OSError
            if isinstance(error, OSError) and error.errno in FULL:
                raise ResourceError(f"cannot {purpose} ({_why(error)}); free or unlock that place") from error
            if pause is None or isinstance(error, PermissionError | FileNotFoundError):
                raise ResourceError(
                    f"cannot {purpose} ({_why(error)}); check that the place exists, its credentials and the network"
                ) from error
            time.sleep(pause)
    raise AssertionError  # the last pause is None


def _why(error: Exception) -> str:
    """Return the first line of the error's message without queries of URLs: a signed URL is a credential."""
    message = getattr(error, "strerror", None) or str(error).strip() or repr(error)
    return re.sub(r"\?[^\s'\"]+=[^\s'\"]*", "?...", message.splitlines()[0])
