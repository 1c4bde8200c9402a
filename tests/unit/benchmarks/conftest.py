"""Settings of the tests of the benchmarks."""

from __future__ import annotations

import pytest

from tests.support.places import ROOT


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs read the configurations of the checkout, as `make` starts them there."""
    monkeypatch.chdir(ROOT)
