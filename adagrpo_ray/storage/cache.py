"""Folders for the library's own files on a machine."""

from __future__ import annotations

import os
from pathlib import Path

from adagrpo_ray.errors import ConfigError


def cache_folder() -> Path:
    """Return the folder for files that can be made again: adagrpo_ray in $XDG_CACHE_HOME, else in ~/.cache."""
    return _folder("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """Return the folder for files of the user: adagrpo_ray in $XDG_STATE_HOME, else in ~/.local/state."""
    return _folder("XDG_STATE_HOME", ".local/state")


def _folder(variable: str, default: str) -> Path:
    """Return `adagrpo_ray` in the folder of the variable if that is an absolute path, else in the home folder.

    The XDG specification has relative paths ignored. Raises ConfigError if there is no home folder.
    """
    given = Path(os.environ.get(variable, ""))
    if given.is_absolute():
        return given / "adagrpo_ray"
    try:
        return Path.home() / default / "adagrpo_ray"
    except RuntimeError:
        raise ConfigError(f"no home folder was found for files of this library; set HOME or {variable}") from None
