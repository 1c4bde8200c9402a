"""Scoring in separate processes: in parallel, with limits of time and memory, and isolated from this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

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

T = TypeVar("T")

WATCH_S = 1.0
"""Seconds between two looks at the pool while a group is scored."""


class RewardScorer:
    """A pool of `settings.workers` processes that score groups; `score` may be awaited many times at once.

    A process that exceeds a limit of time or memory, or dies, is replaced. Only its group fails; `settings.on_error`
    decides how the group is treated. A group whose process was killed is scored a second time. The processes die with
    this one, or end by `close`.
    """

    def __init__(self, settings: RewardsSettings, format: FormatSettings, given: Given = NOTHING) -> None:
        self._settings = settings
        self._format, self._given = format, given
        self._names = settings.names
        self._correct_by = self._names.index(settings.correct_by) if settings.correct_by is not None else -1
        self._pending: set[Future[Any]] = set()
        self._closed = False
        self._noticed = False
        self._notices: list[str] = []
        # The kernel kills a worker when the *thread* that started it ends, so this thread stays alive.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="reward-scorer")
        self._pool = self._start()

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        """Return the scores of the group, and which of its completions [G] are correct.

        If scoring fails, the scores have the error and no completion is correct. Raises RewardError if scoring fails
        with `rewards.on_error=stop` or after `close`.
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
        # Comparing with NaN is False: a completion to which the function does not apply is not correct.
        return scores, scores.by_function[:, self._correct_by] > self._settings.correct_above

    def notices(self) -> tuple[str, ...]:
        """Return the failures since the last call. Only the first failure of all is reported, since many may follow."""
        notices = tuple(self._notices)
        self._notices.clear()
        return notices

    def close(self) -> None:
        """End the processes; groups that wait for scores get a RewardError."""
        if not self._closed:
            self._closed = True
            self._stop()
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

    async def _run(self, task: tuple[Any, ...], prompt_id: str) -> worker.GroupScores:
        """Return the result of `worker.score(*task)` in one of the processes."""
        limit = self._settings.timeout_s
        group = f"rewards.functions {', '.join(self._names)} on prompt {prompt_id!r}"
        # Twice, since a group may be lost through no fault of its own: if a worker is killed while it waits for work,
        # the pool breaks, and the kernel may kill a worker while it scores to free memory.
        for once_more in (True, False):
            if self._closed:
                raise RewardError(f"{group}: the scorer is closed; make a new one")
            if not self._pool.active:
                self._stop()
                self._pool = self._start()
            pool = self._pool
            try:
                future: Future[worker.GroupScores] = pool.schedule(worker.score, args=task, timeout=limit)
            except RuntimeError:  # the pool broke just now
                continue
            self._pending.add(future)
            try:
                return await _result(pool, future)
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
                        "make the function use less or raise the limit"
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
                # Cancelled by the caller, or by `_stop`?
                caller = asyncio.current_task()
                if caller is None or caller.cancelling():
                    raise
            finally:
                self._pending.discard(future)
        raise RewardError(
            f"{group}: the scoring processes die before they score; import the functions' modules in Python to find "
            "the cause"
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
        # Reading `active` starts its processes.
        self._starter.submit(lambda: pool.active).result()
        return pool

    def _stop(self) -> None:
        """End the pool and cancel its tasks, which would otherwise wait forever."""
        self._pool.stop()
        for future in tuple(self._pending):
            future.cancel()
        self._pool.join()


async def _result(pool: ProcessPool, future: Future[T]) -> T:
    """Wait for the result of a task. Raises BrokenProcessPool if the pool broke and forgot the task.

    A pool that breaks aborts the tasks that it has registered. A task that was scheduled just before is registered
    after that, and its future would wait forever (pebble 5.2, `task_scheduler_loop`).
    """
    waiting = asyncio.wrap_future(future)
    try:
        while not (await asyncio.wait({waiting}, timeout=WATCH_S))[0]:
            if not pool.active:
                raise BrokenProcessPool("the pool broke before it registered the task")
        return waiting.result()
    finally:
        waiting.cancel()
