"""`load_config`: the configuration of a run from a file and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adagrpo_ray.config.reading import read_settings
from adagrpo_ray.config.tree import Config


def load_config(path: str | Path | None, overrides: Sequence[str] | Mapping[str, object] = ()) -> Config:
    """Return the configuration in the YAML file at `path`, changed by `overrides`; see `read_settings`."""
    return read_settings(Config, path, overrides)
