"""Scoring outside this process: in parallel, with limits of time and memory, safe from what reward functions do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.rewards import scoring_process as worker
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.rewards.spawn import MainlessSpawnContext
from adagrpo_ray.types import Completion, Prompt


class RewardScorer:
    """A pool of `settings.workers` processes that score groups; `score` may be awaited many times at once.

    A process that runs over the limits of time or memory or dies costs its own group and is replaced; what becomes of
    that group is said by `settings.on_error`. One whose process is killed is scored once more. The processes die with
    this one; `close` ends them before.
    """

    def __init__(self, settings: RewardsSettings, format: FormatSettings, given: Given = NOTHING) -> None:
        self._settings = settings
        self._format, self._given = format, given
        self._names = settings.names
        self._correct_by = self._names.index(settings.correct_by) if settings.correct_by is not None else -1
        self._pending: set[Future[Any]] = set()
        self._closed = False
        self._told = False
        self._notices: list[str] = []
        # The kernel kills a worker when the *thread* that started it ends, so that thread lives here.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="reward-scorer")
        self._pool = self._start()

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        """The group's scores, and which completions [G] are right.

        Where scoring fails, the scores hold the error and nothing is right; with `rewards.on_error=stop`, and once
        closed, it raises RewardError.
        """
        texts = [c.text for c in completions]
        task = (texts, prompt.answer, prompt.text, prompt.difficulty, dict(prompt.columns))
        try:
            rewards, by_function = await self._run(task, prompt.id)
        except RewardError as error:
            if self._closed or self._settings.on_error == "stop":
                raise
            return self._failed(str(error), len(texts)), np.zeros(len(texts), np.bool_)
        scores = Scores(
            rewards=np.array(rewards, dtype=np.float32),
            by_function=np.array(by_function, dtype=np.float32).reshape(len(texts), len(self._names)),
        )
        # Comparing with NaN is False: where the function does not apply, nothing is right.
        return scores, scores.by_function[:, self._correct_by] > self._settings.correct_above

    def notices(self) -> tuple[str, ...]:
        """What went wrong since the last call: the first failure, since a function that fails does so many times."""
        told = tuple(self._notices)
        self._notices.clear()
        return told

    def close(self) -> None:
        """End the processes; groups that still wait get a RewardError."""
        if not self._closed:
            self._closed = True
            self._stop()
            self._starter.shutdown()

    def _failed(self, error: str, size: int) -> Scores:
        """The scores of a group that could not be scored."""
        if not self._told:
            self._told = True
            policy = self._settings.on_error
            self._notices.append(f"{error} (rewards.on_error={policy}; further failures are counted, not shown)")
        return Scores(
            rewards=np.full(size, self._settings.error_score, np.float32),
            by_function=np.full((size, len(self._names)), np.nan, np.float32),
            error=error,
        )

    async def _run(self, task: tuple[Any, ...], prompt_id: str) -> tuple[list[float], list[list[float]]]:
        """`worker.score(*task)` in one of the processes."""
        limit = self._settings.timeout_s
        group = f"rewards.functions {', '.join(self._names)} on prompt {prompt_id!r}"
        # Twice, since a group may be lost without its fault: a worker that is killed while it waits for
        # work takes the pool with it, and one that is killed while it scores may be whom the kernel chose.
        for once_more in (True, False):
            if self._closed:
                raise RewardError(f"{group}: the scorer is closed; make a new one")
            if not self._pool.active:
                self._stop()
                self._pool = self._start()
            try:
                future = self._pool.schedule(worker.score, args=task, timeout=limit)
            except RuntimeError:  # the pool broke just now
                continue
            self._pending.add(future)
            try:
                return await asyncio.wrap_future(future)
            except RewardError as error:
                raise RewardError(f"{error} (scoring prompt {prompt_id!r})") from error
            except TimeoutError:
                raise RewardError(
                    f"{group} did not finish within rewards.timeout_s={limit:g}; "
                    "make the function faster or raise the limit"
                ) from None
            except ProcessExpired as error:
                if error.exitcode == worker.OUT_OF_MEMORY:
                    memory = self._settings.memory_gib
                    raise RewardError(
                        f"{group} ran out of memory with rewards.memory_gib={'null' if memory is None else memory}; "
                        "have the function take less or raise the limit"
                    ) from None
                if once_more and error.exitcode < 0:
                    continue
                raise RewardError(
                    f"{group} ended its process with exit code {error.exitcode}; find out which function ends it "
                    "(a negative code is a signal: -9 is often a lack of memory, -11 a crash)"
                ) from None
            except BrokenProcessPool:
                continue
            except asyncio.CancelledError:
                # By `_stop`, or by the caller?
                caller = asyncio.current_task()
                if caller is None or caller.cancelling():
                    raise
            finally:
                self._pending.discard(future)
        raise RewardError(
            f"{group}: the scoring processes die before they score; importing the functions' modules in Python "
            "should show why"
        )

    def _start(self) -> ProcessPool:
        pool = ProcessPool(
            max_workers=self._settings.workers,
            initializer=worker.start,
            initargs=(
                [(f.function, f.weight) for f in self._settings.functions],
                self._format,
                self._settings.memory_gib,
                self._given,
            ),
            context=MainlessSpawnContext(),
        )
        # Asking whether it is active starts its processes.
        self._starter.submit(lambda: pool.active).result()
        return pool

    def _stop(self) -> None:
        """End the pool, and its tasks, which it would leave waiting forever."""
        self._pool.stop()
        for future in tuple(self._pending):
            future.cancel()
        self._pool.join()
