"""Scores of a model behind an HTTP server: retries, rate limit, cache and counts.

It runs in the event loop of its caller, which is in learner rank 0. It waits for the network nearly all of the time,
and its limits then hold for the whole run. openai's client repeats requests; its errors are raised as RewardErrors.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx2
import openai
from pydantic import BaseModel, Field, ValidationError

from adagrpo_ray.config.served_rewards import JudgeSettings, RewardModelSettings, ServedSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards.consumption import Consumption, Meter
from adagrpo_ray.rewards.rate_limit import RateLimit
from adagrpo_ray.rewards.served_kinds import Judge, Kind, RewardModel
from adagrpo_ray.rewards.server_errors import described, headers_of, key_of, place_of
from adagrpo_ray.rewards.together import together
from adagrpo_ray.types import Prompt

WORDS = ("completion", "prompt", "answer", "difficulty")
"""Placeholders of every template, in addition to the columns of the prompt's row."""


class _Usage(BaseModel):
    prompt_tokens: int = Field(0, ge=0, lt=2**53)
    completion_tokens: int | None = Field(0, ge=0, lt=2**53)


class _Usages(BaseModel):
    usage: _Usage | None = None


class ServedReward:
    """One judge or reward model of a run; `score` may be awaited many times at once, in one event loop."""

    def __init__(
        self, settings: JudgeSettings | RewardModelSettings, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """Prepare the client; nothing is sent. `transport` replaces the network.

        Raises ConfigError if the environment has no key.
        """
        self._settings = settings
        self._kind: Kind = Judge(settings) if isinstance(settings, JudgeSettings) else RewardModel(settings)
        self._meter = Meter()
        self._slots = asyncio.Semaphore(settings.max_concurrent)
        self._scores: OrderedDict[bytes, float] = OrderedDict()  # by digest of the request; the last one is the newest
        self._key = key_of(settings)
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the connections
        self._client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=settings.base_url,
            max_retries=settings.retries,
            timeout=settings.timeout_s,
            default_headers=headers_of(self._key),
            http_client=_Client(settings, self._meter, transport),
        )

    async def score(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """Return the scores of completions [G] of a prompt. Raises RewardError if one of them gets none."""
        self._loop = asyncio.get_running_loop()
        values = {**prompt.columns, "prompt": prompt.text, "answer": prompt.answer, "difficulty": prompt.difficulty}
        try:
            bodies = [self._kind.body({**values, "completion": text}) for text in texts]
        except KeyError as error:
            raise RewardError(f"{place_of(self._settings)}: the row has no column {error} for its template") from None
        if not self._settings.cache_entries:
            return await together([self._ask(body) for body in bodies])
        requests = {_digest(body): body for body in bodies}
        known = {key: self._scores[key] for key in requests if key in self._scores}
        for key in known:
            self._scores.move_to_end(key)
        new = [key for key in requests if key not in known]
        self._meter.add(cache_hits=len(bodies) - len(new))
        known.update(zip(new, await together([self._ask(requests[key], key) for key in new]), strict=True))
        return [known[_digest(body)] for body in bodies]

    def consumption(self, purpose: str = "") -> Consumption:
        """Return the consumption for a purpose since the last call."""
        found, s = self._meter.read(purpose), self._settings
        priced = s.cost(1, 1) > 0
        return replace(found, cost=s.cost(found.prompt_tokens, found.completion_tokens) if priced else None)

    def close(self) -> None:
        """Close the connections, in the event loop that opened them."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(lambda: loop.create_task(self._client.close()))

    async def _ask(self, body: dict[str, Any], key: bytes | None = None) -> float:
        """Return the score of one request, and keep it in the cache under `key`."""
        try:
            async with self._slots:
                reply = await self._client.post(self._kind.path, cast_to=object, body=body)
            self._count_tokens(reply)
            score = self._kind.read(reply)
        except (openai.OpenAIError, ValueError, RecursionError) as error:  # ValueError: nonsense, or no valid JSON
            self._meter.add(failures=1)
            reason = described(error, self._settings, self._key)
            raise RewardError(f"{place_of(self._settings)} {reason}") from None
        if key is not None:
            self._scores[key] = score
            while len(self._scores) > self._settings.cache_entries:
                self._scores.popitem(last=False)
        return score

    def _count_tokens(self, reply: object) -> None:
        try:
            usage = _Usages.model_validate(reply).usage
        except ValidationError:
            return
        if usage is not None:
            self._meter.add(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens or 0)


class _Client(openai.DefaultAsyncHttpxClient):
    """Sends each request, repeated ones too, when its turn comes, and limits its whole time.

    The time limits of httpx are for single reads, so a server that sends a byte now and then would never exceed them.
    """

    def __init__(self, settings: ServedSettings, meter: Meter, transport: httpx2.AsyncBaseTransport | None) -> None:
        super().__init__(transport=transport)
        self._rate_limit, self._meter = RateLimit(settings.requests_per_minute), meter
        self._limit_s = settings.timeout_s

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request. Raises httpx2.ReadTimeout after the time limit, which openai's client takes for its own."""
        await self._rate_limit.wait()
        self._meter.add(requests=1)
        try:
            async with asyncio.timeout(self._limit_s):
                return await super().send(request, **options)
        except TimeoutError:
            raise httpx2.ReadTimeout("the answer was not complete in time", request=request) from None


def _digest(body: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
