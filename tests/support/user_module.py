"""A module of the user, in the current directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def importable(name: str, text: str, folder: Path) -> Iterator[Path]:
    """Write NAME.py into the folder, which is the current directory within the block."""
    (folder / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
