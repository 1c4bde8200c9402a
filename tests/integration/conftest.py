"""The programs in launch/ in this process, on good input and bad."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.places import TINY
from tests.support.scripts import script


@pytest.fixture(scope="session")
def launch() -> ModuleType:
    return script("train")


@pytest.fixture
def refused(
    launch: ModuleType,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Run with bad input in an empty folder: the one error; nothing was started and nothing written."""
    import ray

    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(*overrides: str, config: str = TINY, options: tuple[str, ...] = ()) -> str:
        there = set(tmp_path.rglob("*"))
        code = launch.main(["--config", config, *options, f"run.output_dir={tmp_path / 'runs'}", *overrides])
        captured = capsys.readouterr()
        assert code == 2
        assert captured.err.startswith("error: ")
        assert sum(line.startswith("error: ") for line in captured.err.splitlines()) == 1
        assert "Traceback" not in captured.err + captured.out
        assert not ray.is_initialized()
        assert set(tmp_path.rglob("*")) == there
        return captured.err.strip()

    monkeypatch.chdir(tmp_path)
    return run
