"""An engine and a scorer for tests of the sampler, whose replies can be held and released in any order."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.errors import RequestLostError
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.builders import make_completion, make_prompt

T = TypeVar("T")
Rewards = Callable[[GenerationRequest, int], Sequence[float] | None]
"""From a request and the number of earlier ones for its prompt to the rewards, or None if the prompt is given up."""

UNSCORED = math.nan
"""The reward of a completion that cannot be scored."""

LADDER = [{"from_step": 1, "rungs": [{"temperature": 1.1}, {"temperature": 1.3}]}]
"""Triggers with two rungs from the first step on."""

LIMIT = 16
"""Most tokens of a completion."""
SETTLED = 12
"""Turns of the loop after which nothing happens before another reply."""


def scripted(script: Mapping[str, Sequence[Sequence[float] | None]]) -> Rewards:
    """The k-th request of a prompt gets the k-th row of its script, or its last row."""

    def rewards(request: GenerationRequest, number: int) -> Sequence[float] | None:
        rows = script[request.prompt_id]
        return rows[min(number, len(rows) - 1)]

    return rewards


def chance(rates: Mapping[str, float]) -> Rewards:
    """Each prompt is answered correctly at its rate; the seed of the request decides."""

    def rewards(request: GenerationRequest, number: int) -> Sequence[float]:
        draw = random.Random(request.seed)
        return [float(draw.random() < rates[request.prompt_id]) for _ in range(request.n)]

    return rewards


class Rollouts:
    """Engine and scorer. A completion with a reward above 0 is correct.

    Its length is `length` or, if that is None, depends on the seed of the request.
    """

    def __init__(self, rewards: Rewards, *, held: bool = False) -> None:
        """Create them; with `held` each reply waits until it is released."""
        self.rewards, self.held = rewards, held
        self.requests: list[GenerationRequest] = []
        self.waiting: list[tuple[GenerationRequest, asyncio.Future[None]]] = []
        self.length: int | None = None
        self.scoring: dict[str, asyncio.Event] = {}  # by prompt: its scores wait for it
        self.most = 0  # the most tokens that might have been generated at the time of a request
        self._spent = self._at_work = 0

    def of(self, prompt: str) -> list[GenerationRequest]:
        return [request for request in self.requests if request.prompt_id == prompt]

    def restart(self) -> None:
        """Forget the requests and tokens so far."""
        self.requests, self.most, self._spent, self._at_work = [], 0, 0, 0

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        number, draw = len(self.of(request.prompt_id)), random.Random(-request.seed)
        self.requests.append(request)
        self._at_work += request.n * LIMIT
        self.most = max(self.most, self._spent + self._at_work)
        await self._wait(request, number)
        self._at_work -= request.n * LIMIT
        rewards = self.rewards(request, number)
        if rewards is None:
            raise RequestLostError(f"prompt {request.prompt_id} is given up")
        assert len(rewards) == request.n, f"request {number} of {request.prompt_id} is for {request.n} completions"
        lengths = [draw.randint(1, LIMIT) if self.length is None else self.length for _ in rewards]
        self._spent += sum(lengths)
        return tuple(make_completion(length, text=str(r)) for length, r in zip(lengths, rewards, strict=True))

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        await asyncio.sleep(0)
        if prompt.id in self.scoring:
            await self.scoring[prompt.id].wait()
        rewards = np.array([float(c.text) for c in completions], np.float32)
        if np.isnan(rewards).any():
            return Scores(np.full_like(rewards, -4.0), rewards[:, None], f"no score for {prompt.id}"), rewards > 0
        return Scores(rewards, rewards[:, None]), rewards > 0

    async def _wait(self, request: GenerationRequest, number: int) -> None:
        """Return when the request may end; `number` is that of earlier ones for its prompt."""
        await asyncio.sleep(0)
        if self.held:
            entry = request, asyncio.get_running_loop().create_future()
            self.waiting.append(entry)
            try:
                await entry[1]
            finally:
                self.waiting.remove(entry)

    async def settled(self) -> None:
        """Return when nothing happens any more without a release."""
        for _ in range(SETTLED):
            await asyncio.sleep(0)

    async def release(self, prompt: str) -> None:
        """Let the request of a prompt end, and return when all that follows from it has happened."""
        (reply,) = (reply for request, reply in self.waiting if request.prompt_id == prompt)
        reply.set_result(None)
        await self.settled()

    async def released(self, work: Coroutine[Any, Any, T], order: random.Random) -> T:
        """The result of `work`; the requests in flight end in a random order, one at a time."""
        task = asyncio.create_task(work)
        await self.settled()
        while not task.done():
            if not self.waiting:
                pytest.fail("nothing is in flight, and the step does not end")
            order.choice(self.waiting)[1].set_result(None)
            await self.settled()
        return task.result()


def sampler_of(
    rollouts: Rollouts, prompts: Sequence[str], *, drop_failed: bool = True, **settings: object
) -> AdaptiveSampler:
    """A sampler that takes `prompts` in turn; `settings` are those of the algorithm, without allocation by default."""
    chosen = AlgorithmSettings.model_validate(
        {"prompts_per_step": len(prompts), "group_size": 4, "allocation": {"enabled": False}, **settings}
    )
    return AdaptiveSampler(
        chosen,
        make_method(chosen, ["exact"]),
        PromptOrder([make_prompt(id) for id in prompts], seed=0, shuffle=False),
        rollouts.generate,
        rollouts.score,
        max_new_tokens=LIMIT,
        seed=7,
        drop_failed=drop_failed,
    )
