"""The replies of a collector, and the sampling that it abandons; rollouts and scoring are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.learner import collector as module
from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.collector import Collector
from adagrpo_ray.learner.replies import Pending
from adagrpo_ray.sampling.group_run import Generate, Score
from adagrpo_ray.types import GenerationRequest
from tests.support.builders import make_prompt
from tests.support.rollouts import Rollouts

NOTICE = "learner.liger_kernels=true has no effect: the learner has no GPU"


async def never(*_: Any) -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError("nothing sets the event")


class Scorer:
    """A scorer without processes."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def consumption(self) -> dict[str, Any]:
        return {}

    def notices(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None: ...


@pytest.fixture
def make(background: Background, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Collector]]:
    """Makes a collector with these settings, rollouts and scoring.

    Its reply to a step that has ended is the Collection.
    """
    monkeypatch.setattr(module, "POLL_S", 0.01)
    monkeypatch.setattr(module, "collected", lambda step, collection, *_, **__: collection)
    made: list[Collector] = []

    def make(*overrides: str, generate: Generate = never, score: Score = never) -> Collector:
        monkeypatch.setattr(module, "RewardScorer", lambda *_: Scorer(score))
        config = Config.load(None, ["algorithm.prompts_per_step=2", *overrides])
        pool = SimpleNamespace(generate=generate, members=())
        fleet: Any = SimpleNamespace(pool=pool, notices=lambda: (), restarts=0)
        prompts = PromptSets((make_prompt("a"), make_prompt("b", length=5)), (make_prompt("c"),), {})
        made.append(Collector(config, background, fleet, prompts, "padded", notices=(NOTICE,)))
        return made[-1]

    yield make
    for collector in made:
        collector.close()


@pytest.mark.parametrize("call", [lambda collector: collector.collect(1, 1), lambda collector: collector.evaluate(0)])
def test_the_first_reply_has_the_notices_of_the_engine(
    make: Callable[..., Collector], call: Callable[[Collector], object]
) -> None:
    collector = make()
    assert [call(collector) for _ in range(3)] == [Pending((NOTICE,)), Pending(()), Pending(())]


def half_correct(request: GenerationRequest, number: int) -> list[float]:
    return [float(place % 2) for place in range(request.n)]


def turns(background: Background, rollouts: Rollouts) -> None:
    """Let the coroutines of the background continue as far as they can."""
    for _ in range(10):
        background.run(rollouts.settled())


def ended(collector: Collector, step: int, last: int) -> list[tuple[str, int]]:
    """Wait for the end of a step; the prompts of its groups with their epochs."""
    while isinstance(reply := collector.collect(step, last), Pending):
        pass
    collection: Any = reply
    return [(group.prompt.id, group.epoch) for group in collection.ready]


def test_abandoned_steps_lose_no_group_if_their_rollouts_have_ended(
    make: Callable[..., Collector], background: Background
) -> None:
    """A checkpoint after a stop then has neither the place in the prompts after them, nor their results."""
    ahead, other = Rollouts(half_correct), Rollouts(half_correct)
    collector, alone = (
        make("data.shuffle=false", generate=rollouts.generate, score=rollouts.score) for rollouts in (ahead, other)
    )
    assert ended(collector, 1, 2) == ended(alone, 1, 1) == [("a", 0), ("b", 0)]
    turns(background, ahead)
    assert [request.prompt_id for request in ahead.requests] == ["a", "b", "a", "b"]
    collector.abandon()
    found, expected = collector.state()[0], alone.state()[0]
    assert found["results"].keys() == {"a", "b"}
    assert (found["results"], found["classes"]) == (expected["results"], expected["classes"])
    assert ended(collector, 2, 2) == [("a", 1), ("b", 1)]


def test_a_step_that_ends_between_two_calls_is_undone(make: Callable[..., Collector], background: Background) -> None:
    rollouts = Rollouts(half_correct, held=True)
    collector = make("data.shuffle=false", generate=rollouts.generate, score=rollouts.score)
    before = collector.state()
    assert isinstance(collector.collect(1, 1), Pending)
    turns(background, rollouts)
    for prompt in "ab":
        background.run(rollouts.release(prompt))
    turns(background, rollouts)
    collector.abandon()
    assert collector.state() == before
    rollouts.held = False
    assert ended(collector, 1, 1) == [("a", 0), ("b", 0)]
