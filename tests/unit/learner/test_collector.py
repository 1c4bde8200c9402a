"""The replies of a collector; rollouts and scoring are replaced by ones that never answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.collector import Collector
from adagrpo_ray.learner.replies import Pending
from tests.support.builders import make_prompt

NOTICE = "learner.liger_kernels=true has no effect: the learner has no GPU"


async def never(*_: Any) -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError("nothing sets the event")


class Silent:
    """A scorer without processes."""

    def __init__(self, *_: Any) -> None:
        self.score = never

    def notices(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None: ...


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setattr("adagrpo_ray.learner.collector.RewardScorer", Silent)
    monkeypatch.setattr("adagrpo_ray.learner.collector.POLL_S", 0.01)
    config = Config.load(None, ["algorithm.prompts_per_step=2"])
    fleet: Any = SimpleNamespace(pool=SimpleNamespace(generate=never), notices=lambda: ())
    prompts = PromptSets((make_prompt("a"), make_prompt("b")), (make_prompt("c"),), {})
    background = Background()
    collector = Collector(config, background, fleet, prompts, "padded", notices=(NOTICE,))
    yield collector
    collector.close()
    background.close()


@pytest.mark.parametrize("call", [lambda collector: collector.collect(1, 1), lambda collector: collector.evaluate(0)])
def test_the_first_reply_has_the_notices_of_the_engine(
    collector: Collector, call: Callable[[Collector], object]
) -> None:
    assert [call(collector) for _ in range(3)] == [Pending((NOTICE,)), Pending(()), Pending(())]
