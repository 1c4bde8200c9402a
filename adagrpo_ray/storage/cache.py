"""Where this library keeps files of its own on a machine."""

from __future__ import annotations

import os
from pathlib import Path

from adagrpo_ray.errors import ConfigError


def cache_folder() -> Path:
    """What can be made again: adagrpo_ray in $XDG_CACHE_HOME, else in ~/.cache."""
    return _folder("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """What is kept of a user's: adagrpo_ray in $XDG_STATE_HOME, else in ~/.local/state."""
    return _folder("XDG_STATE_HOME", ".local/state")


def _folder(variable: str, default: str) -> Path:
    """`adagrpo_ray` in the folder of the variable if that is an absolute path, as XDG has it, else in the home folder.

    Raises ConfigError if there is no home folder.
    """
    given = Path(os.environ.get(variable, ""))
    if given.is_absolute():
        return given / "adagrpo_ray"
    try:
        return Path.home() / default / "adagrpo_ray"
    except RuntimeError:
        raise ConfigError(f"there is no home folder for files of this library; set HOME or {variable}") from None
