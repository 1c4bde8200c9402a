"""The parts of a learner actor: the end of each, the sleep of a rollout actor, and the sync on each rank."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.learner import actor as module
from adagrpo_ray.learner.actor import LearnerActor
from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.collector import Collector
from adagrpo_ray.learner.replies import SyncReport
from adagrpo_ray.lora.payload import AdapterWeights


class Pool:
    def __init__(self, events: list[str]) -> None:
        self._events = events

    async def sleep(self) -> None:
        self._events.append("sleep")

    async def wake(self) -> None:
        self._events.append("wake")


def make_actor(
    events: list[str], background: Background, monkeypatch: pytest.MonkeyPatch, *, sleep: bool, fails: bool = False
) -> LearnerActor:
    def train(batch: object) -> str:
        events.append("train")
        if fails:
            raise RuntimeError("out of memory")
        return "report"

    monkeypatch.setattr(module, "release", lambda: events.append("release"))
    collector = object.__new__(Collector)
    collector._background = background
    collector._fleet = SimpleNamespace(pool=Pool(events))  # type: ignore[assignment]
    actor = LearnerActor()
    actor._config = Config.load(None, [f"rollout.sleep={str(sleep).lower()}"])
    actor._engine = SimpleNamespace(train=train)  # type: ignore[assignment]
    actor._collector = collector
    actor._shared = True
    return actor


def test_vllm_sleeps_during_training_and_wakes_after_the_memory_is_released(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    assert make_actor(events, background, monkeypatch, sleep=True).train("batch") == "report"
    assert events == ["sleep", "train", "release", "wake"]


def test_vllm_wakes_if_training_fails(background: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        make_actor(events, background, monkeypatch, sleep=True, fails=True).train("batch")
    assert events == ["sleep", "train", "release", "wake"]


def test_memory_of_a_shared_gpu_is_released_if_vllm_does_not_sleep_too(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    make_actor(events, background, monkeypatch, sleep=False).train("batch")
    assert events == ["train", "release"]


def test_memory_of_a_gpu_of_its_own_is_kept(background: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    actor = make_actor(events, background, monkeypatch, sleep=False)
    actor._shared = False
    actor.train("batch")
    assert events == ["train"]


@pytest.mark.parametrize("wait", [True, False])
def test_all_ranks_gather_the_adapter_and_rank_0_sends_it(wait: bool) -> None:
    events: list[str] = []
    pair = {f"base_model.model.layer.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}

    def adapter() -> dict[str, torch.Tensor]:
        events.append("gather")
        return pair

    def send(weights: AdapterWeights, *, wait: bool) -> float:
        events.append(f"send {weights.version}, {wait}")
        return 0.5

    def sync(rank: int) -> SyncReport | None:
        actor = LearnerActor()
        actor._rank, actor._config = rank, Config.load(None, ["model.dtype=float32"])
        actor._engine = SimpleNamespace(adapter=adapter)  # type: ignore[assignment]
        actor._collector = SimpleNamespace(send=send)  # type: ignore[assignment]
        return actor.sync(7, wait)

    assert sync(1) is None
    assert events == ["gather"]
    report = sync(0)
    assert events == ["gather", "gather", f"send 7, {wait}"]
    assert report is not None
    assert (report.version, report.seconds) == (7, 0.5)
    assert report.sent_bytes > 2 * 2 * 2 * 4


def test_an_engine_is_freed_before_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class OneEngine:
        def __init__(self, *_: Any) -> None:
            events.append(f"make, {len(alive)} alive")
            self.circle = self  # as objects of DeepSpeed refer to each other
            alive.add(self)

        def close(self) -> None:
            events.append("close")

    monkeypatch.setattr(module, "LearnerEngine", OneEngine)
    monkeypatch.setattr(module, "use_node_address", lambda: None)
    monkeypatch.setattr(module, "release", lambda: events.append("release"))
    actor, model = LearnerActor(), SimpleNamespace(here=lambda: "model")
    for _ in range(2):
        actor.start(Config(), 0, model, ("127.0.0.1", 0))  # type: ignore[arg-type]
    assert events == ["make, 0 alive", "close", "release", "make, 0 alive"]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the calls of a fleet and of collectors, which are replaced."""
    events: list[str] = []

    class OneFleet:
        def __init__(self, *_: Any) -> None: ...

        async def open(self) -> None:
            events.append("open fleet")

        async def end_run(self) -> None:
            events.append("end run of fleet")

        async def close(self) -> None:
            events.append("close fleet")

    class OneCollector:
        def __init__(self, config: Any, background: Background, fleet: Any, prompts: str, *_: Any) -> None:
            self._prompts = prompts
            events.append(f"begin {prompts}")
            if prompts == "bad":
                raise ValueError(prompts)

        def close(self) -> None:
            events.append(f"end {self._prompts}")

    monkeypatch.setattr(module, "Fleet", OneFleet)
    monkeypatch.setattr(module, "Collector", OneCollector)
    return events


def opened() -> LearnerActor:
    actor: Any = LearnerActor()
    actor.open(None, SimpleNamespace(shared=False), [None], 1)
    actor._config, actor._model, actor._engine = None, None, SimpleNamespace(packing="padded", notices=())
    return actor  # type: ignore[no-any-return]


def test_a_new_run_ends_the_one_before_and_stop_ends_the_fleet(events: list[str]) -> None:
    actor: Any = opened()
    actor.attach("first")
    actor.attach("second")
    assert events == ["open fleet", "begin first", "end first", "end run of fleet", "begin second"]
    actor.stop()
    assert events[5:] == ["end second", "end run of fleet", "close fleet"]
    assert not actor._background._thread.is_alive()
    actor.stop()
    assert len(events) == 8


def test_stop_ends_only_the_parts_that_exist(events: list[str]) -> None:
    LearnerActor().stop()
    assert events == []
    opened().stop()
    assert events == ["open fleet", "close fleet"]
    actor: Any = opened()
    with pytest.raises(ValueError, match="bad"):
        actor.attach("bad")
    actor.stop()
    assert events[2:] == ["open fleet", "begin bad", "close fleet"]
