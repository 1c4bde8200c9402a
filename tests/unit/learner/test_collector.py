"""The replies of a collector; rollouts and scoring are replaced by ones that never answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.collector import Collector
from adagrpo_ray.learner.prompt_states import HiddenStates
from adagrpo_ray.learner.replies import Pending
from adagrpo_ray.types import Floats, TokenIds
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
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Collector]]:
    """Makes a collector with these settings, and a function for hidden states."""
    monkeypatch.setattr("adagrpo_ray.learner.collector.RewardScorer", Silent)
    monkeypatch.setattr("adagrpo_ray.learner.collector.POLL_S", 0.01)
    background = Background()
    made: list[Collector] = []

    def make(*overrides: str, hidden: HiddenStates | None = None) -> Collector:
        config = Config.load(None, ["algorithm.prompts_per_step=2", *overrides])
        fleet: Any = SimpleNamespace(pool=SimpleNamespace(generate=never), notices=lambda: ())
        prompts = PromptSets((make_prompt("a"), make_prompt("b", length=5)), (make_prompt("c"),), {})
        made.append(Collector(config, background, fleet, prompts, "padded", notices=(NOTICE,), hidden=hidden))
        return made[-1]

    yield make
    for collector in made:
        collector.close()
    background.close()


@pytest.mark.parametrize("call", [lambda collector: collector.collect(1, 1), lambda collector: collector.evaluate(0)])
def test_the_first_reply_has_the_notices_of_the_engine(
    make: Callable[..., Collector], call: Callable[[Collector], object]
) -> None:
    collector = make()
    assert [call(collector) for _ in range(3)] == [Pending((NOTICE,)), Pending(()), Pending(())]


@pytest.mark.parametrize(("predictor", "lengths"), [("true", [3, 5]), ("false", [])])
def test_hidden_states_of_the_next_prompts_are_computed_once(
    make: Callable[..., Collector], predictor: str, lengths: list[int]
) -> None:
    found: list[int] = []

    def hidden(prompts: Sequence[TokenIds]) -> Floats:
        found.extend(len(prompt) for prompt in prompts)
        return np.zeros((len(prompts), 4), np.float32)

    collector = make(f"algorithm.allocation.predictor={predictor}", "data.shuffle=false", hidden=hidden)
    for _ in range(2):
        assert isinstance(collector.collect(1, 2), Pending)
    assert found[:2] == lengths
    assert collector.state()[0].get("predictor", {}).get("epochs", {}).keys() == ({"a", "b"} if lengths else set())
