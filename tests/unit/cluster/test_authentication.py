"""Tokens in requests to a Ray cluster, and the warning about a cluster that requires none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from adagrpo_ray.cluster.authentication import own_token, takes_token
from adagrpo_ray.cluster.placement import Hardware, place
from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.runs import Observer
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.preflight import Inputs
from adagrpo_ray.training.start import place_and_train
from tests.support.authentication import without_tokens


@pytest.fixture(autouse=True)
def no_token() -> Iterator[None]:
    with without_tokens():
        yield


def test_every_run_has_its_own_token() -> None:
    assert not takes_token()
    tokens = set()
    for _ in range(2):
        with own_token():
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
            assert takes_token()
    assert len(tokens) == 2
    assert not takes_token()


def test_environment_is_restored_after_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with own_token():
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_run_warns_of_cluster_without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Observer):
        def phase(self, text: str) -> None:
            raise InterruptedError(text)

    config = Config()
    placement = place(config.rollout, config.learner, Hardware(4, 0), ours=False)
    monkeypatch.setattr("adagrpo_ray.training.start.connect", lambda *_: nullcontext(placement))
    inputs = Inputs("tiny", PromptSets((), (), {}), 128, joined="10.0.0.2:6379")
    with pytest.raises(InterruptedError, match=r"^warning: the Ray cluster at 10\.0\.0\.2:6379 requires no token"):
        place_and_train(config, inputs, Path("unused"), Told(), None, Stop(), "unused", 0.0)
