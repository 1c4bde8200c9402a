"""Writes files of settings, and reads ones that are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(overrides: Sequence[str] | Mapping[str, object] = (), path: Path | None = None) -> str:
    """The message of the error that these settings raise."""
    with pytest.raises(ConfigError) as raised:
        Config.load(path, overrides)
    return str(raised.value)
