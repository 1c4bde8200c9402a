"""Settings of all tests, and what several files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.program import train

# Test processes run side by side, and torch's threads of one stall those of another. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test asks the Hub for anything, and asking for what is not there takes half a minute of retries.
os.environ["HF_HUB_OFFLINE"] = "1"

# The machine is shared: a slow example says nothing about the code.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, 4)
    return folder / "run"
