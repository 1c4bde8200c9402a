"""The load that vLLM reports after each step of its engine, and detection of an engine that has stalled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from adagrpo_ray.errors import ActorLostError
from adagrpo_ray.runs.records import RolloutLoad

T = TypeVar("T")


async def ends_while_active(task: asyncio.Future[Any], active_at: Callable[[], float], limit_s: float) -> bool:
    """Wait for the end of `task`.

    Returns False once `limit_s` seconds have passed since the call and since `active_at()`, the time of the last sign
    of activity (`time.monotonic`).
    """
    began = time.monotonic()
    while not task.done():
        left = max(began, active_at()) + limit_s - time.monotonic()
        if left <= 0:
            return False
        await asyncio.wait({task}, timeout=left)
    return True


class EngineLoad:
    """Keeps the newest load of one engine, and the time of its last step (`time.monotonic`)."""

    def __init__(self) -> None:
        self.newest = RolloutLoad()
        self.stepped_at = time.monotonic()

    async def while_it_steps(self, work: Coroutine[Any, Any, T], limit_s: float) -> T:
        """Wait for the result of `work`. Raises ActorLostError if the engine does no step for `limit_s` seconds."""
        task = asyncio.ensure_future(work)
        try:
            if not await ends_while_active(task, lambda: self.stepped_at, limit_s):
                raise ActorLostError(f"its vLLM engine did no step for rollout.stall_timeout_s={limit_s:g} s")
            return task.result()
        finally:
            task.cancel()  # if the caller is cancelled or gives up, vLLM aborts the request

    def logger(self) -> type:
        """A class for vLLM's `stat_loggers`.

        It is a Prometheus logger because vLLM would otherwise add its own, with a hundred metrics that are not used.
        """
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        load = self

        class Logger(PrometheusStatLogger):  # type: ignore[misc]
            def __init__(self, *_: Any, **__: Any) -> None: ...

            def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
                load.stepped_at = time.monotonic()
                if scheduler_stats is not None:
                    load.newest = RolloutLoad(
                        sequences_running=scheduler_stats.num_running_reqs,
                        sequences_waiting=scheduler_stats.num_waiting_reqs,
                        kv_cache_usage=scheduler_stats.kv_cache_usage,
                    )

            def log_engine_initialized(self) -> None: ...

            def record_sleep_state(self, *_: Any, **__: Any) -> None: ...

            def record_admission_rejection(self, *_: Any, **__: Any) -> None: ...

        return Logger
