"""Scoring of groups by all reward functions of a run.

Functions run in scoring processes (`process_pool`), coroutine functions in one process for many groups (`async_host`).
Judges and reward models are asked from the event loop of the caller (`served`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.rewards import scoring_process as worker
from adagrpo_ray.rewards.async_host import AsyncHost, HostLostError
from adagrpo_ray.rewards.consumption import Consumption
from adagrpo_ray.rewards.process_pool import ScoringPool
from adagrpo_ray.rewards.registry import BUILTIN, Scores, weighted
from adagrpo_ray.types import Completion, Prompt

if TYPE_CHECKING:
    from adagrpo_ray.rewards.served import ServedReward

T = TypeVar("T")
Scoring = Callable[[], Coroutine[Any, Any, Sequence[object]]]


class RewardScorer:
    """Scores groups; `score` may be awaited many times at once.

    A failure costs its group only; `settings.on_error` decides how the group is treated. The processes die with this
    one, or end by `close`. With judges or reward models, all calls must be in one event loop.
    """

    def __init__(self, settings: RewardsSettings, format: FormatSettings, given: Given = NOTHING) -> None:
        """Start the processes. Raises ConfigError if the environment lacks the key of a judge or reward model."""
        self._served = _served(settings)  # first, since processes would remain after an error
        self._settings, self._names = settings, settings.names
        self._correct_by = self._names.index(settings.decides)
        self._closed = False
        self._noticed = False
        self._notices: list[str] = []
        names = [reward.name for reward in settings.own]
        self._places = [place for place, reward in enumerate(settings.functions) if reward.served is None]
        # Built-in functions are no coroutine functions. Others are known in the scoring processes only.
        self._coroutines: list[int] | None = [] if set(names) <= BUILTIN.keys() else None
        # The kernel kills a worker when the *thread* that started it ends, so this thread stays alive.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="reward-scorer")
        functions = worker.Functions(names, format, settings.memory_gib, given)
        self._pool = ScoringPool(functions, settings, self._starter) if names else None
        self._host = AsyncHost(functions, settings, self._starter)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        """Return the scores of the group, and which of its completions [G] are correct.

        If scoring fails, the scores have the error and no completion is correct. Raises RewardError if scoring fails
        with `rewards.on_error=stop` or after `close`.
        """
        texts = [c.text for c in completions]
        try:
            raw = await self._raw(prompt, texts)
            scores = weighted(raw, [reward.weight for reward in self._settings.functions], self._names)
        except RewardError as error:
            if self._closed or self._settings.on_error == "stop":
                raise
            return self._failed(str(error), len(texts)), np.zeros(len(texts), np.bool_)
        # Comparing with NaN is False: a completion to which the function does not apply is not correct.
        return scores, scores.by_function[:, self._correct_by] > self._settings.correct_above

    def notices(self) -> tuple[str, ...]:
        """Return the failures since the last call. Only the first failure of all is reported, since many may follow."""
        notices = tuple(self._notices)
        self._notices.clear()
        return notices

    def consumption(self, purpose: str = "") -> Mapping[str, Consumption]:
        """Return the consumption of each judge and reward model for a purpose since the last call, by its name."""
        return {self._names[place]: model.consumption(purpose) for place, model in self._served.items()}

    def close(self) -> None:
        """End the processes; groups that wait for scores get a RewardError."""
        if not self._closed:
            self._closed = True
            for model in self._served.values():
                model.close()
            self._host.close()
            if self._pool is not None:
                self._pool.close()
            self._starter.shutdown()

    def _failed(self, error: str, size: int) -> Scores:
        """Return the scores of a group that could not be scored, and note the first failure."""
        if not self._noticed:
            self._noticed = True
            policy = self._settings.on_error
            self._notices.append(f"{error} (rewards.on_error={policy}; further failures are counted, not shown)")
        return Scores(
            rewards=np.full(size, self._settings.error_score, np.float32),
            by_function=np.full((size, len(self._names)), np.nan, np.float32),
            error=error,
        )

    async def _raw(self, prompt: Prompt, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the scores [G, F]. All functions score side by side. Raises the error of the first one that failed."""
        if self._closed:
            raise RewardError(f"rewards.functions {', '.join(self._names)}: the scorer is closed; make a new one")
        raw = np.empty((len(texts), len(self._names)))

        async def fill(places: Sequence[int], score: Scoring) -> None:
            raw[:, places] = np.array(await score(), dtype=np.float64).reshape(len(texts), len(places))

        work = [] if self._pool is None else [fill(*part) for part in await self._own(self._pool, prompt, texts)]
        for place, model in self._served.items():
            work.append(fill([place], partial(_named, partial(model.score, prompt, texts), prompt)))
        # A failure does not cancel the others: a process whose group is cancelled has to be replaced.
        for error in await asyncio.gather(*work, return_exceptions=True):
            if error is not None:
                raise error
        return raw

    async def _own(self, pool: ScoringPool, prompt: Prompt, texts: Sequence[str]) -> list[tuple[list[int], Scoring]]:
        """Return the places in `rewards.functions` of functions that are called, and of those that are awaited."""
        if self._coroutines is None:
            self._coroutines = await pool.run(worker.coroutine_functions, (), prompt.id)
        task: worker.GroupTask = (list(texts), prompt.answer, prompt.text, prompt.difficulty, dict(prompt.columns))
        awaited = self._coroutines
        called = [own for own in range(len(self._places)) if own not in awaited]
        parts: list[tuple[list[int], Scoring]] = []
        if called:
            parts.append((self._all_places(called), partial(pool.run, worker.score, (task, called), prompt.id)))
        if awaited:
            parts.append((self._all_places(awaited), partial(self._awaited, pool, task, awaited, prompt)))
        return parts

    async def _awaited(
        self, pool: ScoringPool, task: worker.GroupTask, own: Sequence[int], prompt: Prompt
    ) -> worker.GroupScores:
        """Return the scores by coroutine functions. A group whose process was lost is scored again, in another one."""
        try:
            return await _named(partial(self._host.score, task, own), prompt)
        except HostLostError:
            return await pool.run(worker.score, (task, own), prompt.id)
        except TimeoutError:
            raise pool.late(prompt.id) from None

    def _all_places(self, own: Sequence[int]) -> list[int]:
        """Return the places in `rewards.functions` of functions that are given by their places among the functions."""
        return [self._places[place] for place in own]


def _served(settings: RewardsSettings) -> dict[int, ServedReward]:
    """Return the judges and reward models by their places in `rewards.functions`."""
    if not settings.served:
        return {}
    from adagrpo_ray.rewards import served  # openai takes a second, which only this needs

    models = {place: reward.served for place, reward in enumerate(settings.functions)}
    return {place: served.ServedReward(model) for place, model in models.items() if model is not None}


async def _named(score: Callable[[], Coroutine[Any, Any, T]], prompt: Prompt) -> T:
    """Return the result of `score`; a RewardError names the prompt."""
    try:
        return await score()
    except RewardError as error:
        raise RewardError(f"{error} (scoring prompt {prompt.id!r})") from None
