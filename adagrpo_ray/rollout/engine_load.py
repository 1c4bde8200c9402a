"""The load of a vLLM engine, as vLLM reports it after each decoding step."""

from __future__ import annotations

import time
from typing import Any

from adagrpo_ray.runs.records import RolloutLoad


class EngineLoad:
    """Keeps the newest load of one engine, and when it last did a step (`time.monotonic`)."""

    def __init__(self) -> None:
        self.newest = RolloutLoad()
        self.stepped_at = time.monotonic()

    def logger(self) -> type:
        """A class for vLLM's `stat_loggers`.

        vLLM would add its own Prometheus logger, of a hundred metrics that nothing reads here, unless it finds one.
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
