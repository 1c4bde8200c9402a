"""Versions of the adapter that are sent in the background, and the sampling and evaluations that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.errors import SyncError
from adagrpo_ray.learner import collector as module
from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.collector import Collector
from adagrpo_ray.learner.delivery import Delivery
from adagrpo_ray.learner.replies import Pending
from tests.support.builders import make_prompt


class Pool:
    """Rollout actors that get versions 2 and later when `release` is called, or fail to; records the order."""

    def __init__(self, background: Background, events: list[str]) -> None:
        self._background, self._events = background, events
        self._released = background.run(self._event())
        self._error: Exception | None = None

    async def apply(self, version: Any) -> None:
        self._events.append(f"send {version}")
        if version > 1:
            await self._released.wait()
            if self._error is not None:
                raise self._error
        self._events.append(f"arrived {version}")

    def release(self, error: Exception | None = None) -> None:
        async def release() -> None:
            self._error = error
            self._released.set()

        self._background.run(release())

    async def generate(self, *_: Any) -> None:
        await asyncio.Event().wait()

    @staticmethod
    async def _event() -> asyncio.Event:
        return asyncio.Event()


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def pool(background: Background, events: list[str]) -> Pool:
    return Pool(background, events)


@pytest.fixture
def delivery(background: Background, pool: Pool) -> Delivery:
    return Delivery(background, pool)  # type: ignore[arg-type]


def noting(events: list[str], event: str) -> Callable[[], Coroutine[Any, Any, str]]:
    """Work that records an event and returns it."""

    async def work() -> str:
        events.append(event)
        return event

    return work


def turns(background: Background) -> None:
    """Let the coroutines of the background continue as far as they can."""

    async def several() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    background.run(several())


def weights(version: int) -> Any:
    """A version of the adapter; only its number matters here."""
    return version


def test_a_version_that_is_waited_for_has_arrived(delivery: Delivery, events: list[str]) -> None:
    assert delivery.send(weights(1), wait=True) > 0
    assert events == ["send 1", "arrived 1"]


def test_work_waits_for_the_version_before_it_and_continues_in_order(
    background: Background, delivery: Delivery, pool: Pool, events: list[str]
) -> None:
    delivery.send(weights(1), wait=True)
    before = background.start(delivery.after(noting(events, "before")))
    delivery.send(weights(2), wait=False)
    started = [background.start(delivery.after(noting(events, name))) for name in ("one", "two")]
    turns(background)
    assert before.done()
    assert not any(task.done() for task in started)
    pool.release()
    started.append(background.start(delivery.after(noting(events, "three"))))
    turns(background)
    assert events == ["send 1", "arrived 1", "before", "send 2", "arrived 2", "one", "two", "three"]
    assert [task.result() for task in started] == ["one", "two", "three"]


def test_a_version_is_sent_after_the_one_before_has_arrived_and_reports_its_time(
    background: Background, delivery: Delivery, pool: Pool, events: list[str]
) -> None:
    first = delivery.send(weights(1), wait=True)
    assert delivery.send(weights(2), wait=False) == first  # the time of version 2 is not known yet
    pool.release()
    second = delivery.send(weights(3), wait=False)
    assert second not in (0.0, first)
    turns(background)
    assert events == ["send 1", "arrived 1", "send 2", "arrived 2", "send 3", "arrived 3"]


def test_work_that_is_cancelled_leaves_the_version_on_its_way(
    background: Background, delivery: Delivery, pool: Pool, events: list[str]
) -> None:
    delivery.send(weights(2), wait=False)
    background.cancel([background.start(delivery.after(noting(events, "never")))])
    pool.release()
    delivery.settle()
    assert events == ["send 2", "arrived 2"]


def test_an_error_is_raised_by_everything_that_needs_the_version(
    background: Background, delivery: Delivery, pool: Pool, events: list[str]
) -> None:
    delivery.send(weights(2), wait=False)
    delivery.check()
    waiting = background.start(delivery.after(noting(events, "never")))
    pool.release(SyncError("version 2: another digest"))
    delivery.settle()
    turns(background)
    for call in (delivery.check, waiting.result, lambda: delivery.send(weights(3), wait=False)):
        with pytest.raises(SyncError, match="version 2"):
            call()
    with pytest.raises(SyncError, match="version 2"):
        background.run(delivery.after(noting(events, "never")))
    assert events == ["send 2"]


# --- the collector


class Sampler:
    """A sampler whose collections record the step and never end."""

    def __init__(self, events: list[str], *_: Any, **__: Any) -> None:
        self._events = events

    async def collect(self, step: int, asked: asyncio.Event) -> None:
        self._events.append(f"sample {step}")
        await asyncio.Event().wait()


@pytest.fixture
def collector(
    background: Background, pool: Pool, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Collector]:
    scorer = SimpleNamespace(score=None, notices=lambda: (), close=lambda: None)

    class Evaluation:
        def __init__(self, *_: Any) -> None: ...

        async def run(self, step: int) -> str:
            events.append(f"evaluate {step}")
            return f"evaluation {step}"

        def notices(self) -> tuple[str, ...]:
            return ()

        def close(self) -> None: ...

    monkeypatch.setattr(module, "RewardScorer", lambda *_: scorer)
    monkeypatch.setattr(module, "AdaptiveSampler", lambda *a, **k: Sampler(events))
    monkeypatch.setattr(module, "Evaluation", Evaluation)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    config = Config.load(None, ["algorithm.prompts_per_step=2"])
    fleet: Any = SimpleNamespace(pool=pool, notices=lambda: ())
    prompts = PromptSets((make_prompt("a"), make_prompt("b")), (make_prompt("c"),), {})
    collector = Collector(config, background, fleet, prompts, "padded")
    yield collector
    pool.release()
    collector.close()


def test_only_rollouts_that_begin_later_wait_for_a_version(
    collector: Collector, background: Background, pool: Pool, events: list[str]
) -> None:
    collector.send(weights(1), wait=True)
    assert collector.collect(2, 3) == Pending(())
    collector.send(weights(2), wait=False)
    assert collector.collect(3, 4) == Pending(())
    assert events == ["send 1", "arrived 1", "sample 2", "sample 3", "send 2"]
    pool.release()
    turns(background)
    assert events[5:] == ["arrived 2", "sample 4"]


def test_an_evaluation_waits_for_the_version_of_its_step(collector: Collector, pool: Pool, events: list[str]) -> None:
    collector.send(weights(2), wait=False)
    assert collector.evaluate(2) == Pending(())
    pool.release()
    while isinstance(reply := collector.evaluate(2), Pending):
        pass
    assert str(reply) == "evaluation 2"
    assert events == ["send 2", "arrived 2", "evaluate 2"]


def test_a_collection_in_flight_raises_the_error_of_a_sync(
    collector: Collector, background: Background, pool: Pool
) -> None:
    collector.collect(1, 2)
    collector.send(weights(2), wait=False)
    pool.release(SyncError("version 2: another digest"))
    turns(background)
    with pytest.raises(SyncError, match="version 2"):
        collector.collect(2, 3)


def test_abandoned_sampling_leaves_no_version_on_its_way(
    collector: Collector, background: Background, pool: Pool, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = background.cancel

    def cancel_and_release(tasks: Iterable[asyncio.Task[Any]]) -> None:
        async def release_later() -> None:
            for _ in range(100):
                await asyncio.sleep(0)
            pool._released.set()

        cancel(tasks)
        background.start(release_later())

    monkeypatch.setattr(background, "cancel", cancel_and_release)
    collector.send(weights(2), wait=False)
    collector.collect(3, 3)
    collector.abandon()
    assert events == ["send 2", "arrived 2"]
