"""Settings of all tests, and what several files share."""

from __future__ import annotations

import gc
import os
from itertools import islice
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.support.held import Gate
from tests.support.places import TINY
from tests.support.program import OUTPUT, PLANTED, train

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

BEGUN_FIRST = (
    "end_to_end",  # makes the run that others wait for
    "fleet",
    "weight_sync",
    "python_docs",
    "submit",
    "resume",
    "learner",
    "checkpoint_engine",
    "two_ranks",
    "evaluate",
    "engine_start",
    "turns",
)
"""Files that take longest. The short ones fill up what is left of the time of xdist's processes."""

MARKED = ("faults", "gpu", "real", "ui")
"""Folders whose tests all have the marker of the folder's name."""
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before `-m` picks tests by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(HERE).parts[0]
        if tier in MARKED:
            item.add_marker(tier)
    places = {f"test_{name}": place for place, name in enumerate(BEGUN_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(BEGUN_FIRST)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000)  # each collection visits what the tests have imported since
    gc.enable()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps that nothing stopped, with its report; one for all of xdist's processes.

    Its output is in `OUTPUT` beside it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole"
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_TOKEN", PLANTED)  # that no run leaves it behind is test_whole_run.py's
        if not folder.exists():
            output = train(folder, 4, "run.report=true")
            (folder / OUTPUT).write_text(output)
    return folder / "run"


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate for the programs that the test starts."""
    folder = tmp_path_factory.mktemp("gate")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return Gate(folder)


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of the tiny model, built beforehand, so that no test sees it being built."""
    from adagrpo_ray.config import Config
    from adagrpo_ray.model.pretrained import resolve_model

    return Path(resolve_model(Config.load(TINY)))


@pytest.fixture(scope="session")
def model_path(tiny_model: Path) -> str:
    return str(tiny_model)


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have only their first figure, for tests that are not about the others."""
    from adagrpo_ray.reports.charts import charts

    monkeypatch.setattr("adagrpo_ray.reports.write.charts", lambda runs, interval: islice(charts(runs, interval), 1))


@pytest.fixture
def template_file(tmp_path: Path) -> Path:
    """A file with the chat template `ASKS`."""
    from tests.support.scripted import ASKS

    file = tmp_path / "asks.jinja"
    file.write_text(ASKS)
    return file
