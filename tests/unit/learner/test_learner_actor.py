"""The order of events where a rollout actor leaves the GPU to the learner."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from adagrpo_ray.config import load_config
from adagrpo_ray.learner.actor import LearnerActor
from adagrpo_ray.learner.background import Background


class Pool:
    def __init__(self, events: list[str]) -> None:
        self._events = events

    async def sleep(self) -> None:
        self._events.append("sleep")

    async def wake(self) -> None:
        self._events.append("wake")


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


def make_actor(events: list[str], background: Background, *, sleep: bool, fails: bool = False) -> LearnerActor:
    def train(batch: object) -> str:
        events.append("train")
        if fails:
            raise RuntimeError("out of memory")
        return "report"

    actor = LearnerActor()
    actor._config = load_config(None, [f"rollout.sleep={str(sleep).lower()}"])
    actor._background = background
    actor._engine = SimpleNamespace(train=train, release=lambda: events.append("release"))  # type: ignore[assignment]
    actor._fleet = SimpleNamespace(pool=Pool(events))  # type: ignore[assignment]
    return actor


def test_vllm_sleeps_while_the_learner_trains_and_wakes_when_its_memory_is_free(background: Background) -> None:
    events: list[str] = []
    assert make_actor(events, background, sleep=True).train("batch") == "report"
    assert events == ["sleep", "train", "release", "wake"]


def test_vllm_wakes_where_training_fails(background: Background) -> None:
    events: list[str] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        make_actor(events, background, sleep=True, fails=True).train("batch")
    assert events == ["sleep", "train", "release", "wake"]


def test_both_stay_where_nothing_needs_to_sleep(background: Background) -> None:
    events: list[str] = []
    make_actor(events, background, sleep=False).train("batch")
    assert events == ["train"]
