"""Settings of all tests, and what several files share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.held import Gate
from tests.program import train
from tests.scripts import script

# Test processes run side by side, and torch's threads of one stall those of another. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks the Hub for anything, and asking for what is not there takes half a minute of retries.
os.environ["HF_HUB_OFFLINE"] = "1"

# Whatever cluster the shell is set up for: the programs of the tests start a Ray of their own.
for name in ("ADDRESS", "API_SERVER_ADDRESS", "AUTH_MODE", "AUTH_TOKEN", "AUTH_TOKEN_PATH", "JOB_CONFIG_JSON_ENV_VAR"):
    os.environ.pop(f"RAY_{name}", None)
# By itself Ray gives its workers nice 15: beside two busy programs they get a thirtieth of the processors.
os.environ |= {"RAY_worker_niceness": "0"}
# Ray and vLLM make sockets there, whose paths may have 107 bytes; that they refuse longer ones is test_joining.py's.
for name in ("RAY_TMPDIR", "TMPDIR"):
    if len(os.fsencode(os.environ.get(name, ""))) > 39:
        os.environ[name] = "/tmp"

# The collector takes a quarter of the time in which modules are imported and tests collected.
gc.disable()

# The machine is shared: a slow example says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

LONG = (
    "weight_sync",
    "submit",
    "fleet",
    "end_to_end",
    "python_docs",
    "resume",
    "learner",
    "checkpoint_engine",
    "evaluate",
)
"""Files that take longest: begun first, short ones fill up what is left of the time of xdist's processes."""

PLANTED = "hf_" + "planted0" * 4
TINY = str(Path("launch/configs/tiny-cpu.yaml").resolve())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps that nothing stopped, with its report; one for all of xdist's processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_TOKEN", PLANTED)  # that no run leaves it behind is test_security.py's
        if not folder.exists():
            train(folder, 4, "run.report=true")
    return folder / "run"


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate for the programs that the test starts."""
    folder = tmp_path_factory.mktemp("gate")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return Gate(folder)


@pytest.fixture(scope="session")
def launch() -> ModuleType:
    return script("train")


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of the tiny model, built beforehand, so that no test sees it being built."""
    from adagrpo_ray.config import load_config
    from adagrpo_ray.model.pretrained import resolve_model

    return Path(resolve_model(load_config(TINY)))


@pytest.fixture(scope="session")
def model_path(tiny_model: Path) -> str:
    return str(tiny_model)


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

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
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
