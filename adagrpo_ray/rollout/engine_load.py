"""What vLLM says of its engine after each step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class EngineLoad:
    """Keeps the newest figures of one engine, and when it last did a step (`time.monotonic`)."""

    def __init__(self) -> None:
        self.values: Mapping[str, float] = {}
        self.stepped_at = time.monotonic()

    def logger(self) -> type:
        """A class for vLLM's `stat_loggers`.

        vLLM would add its own Prometheus logger, of a hundred figures that nobody reads here, unless it finds one.
        """
        from vllm.v1.metrics.loggers import PrometheusStatLogger

        load = self

        class Logger(PrometheusStatLogger):  # type: ignore[misc]
            def __init__(self, *_: Any, **__: Any) -> None: ...

            def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
                load.stepped_at = time.monotonic()
                if scheduler_stats is not None:
                    load.values = {
                        "sequences_running": scheduler_stats.num_running_reqs,
                        "sequences_waiting": scheduler_stats.num_waiting_reqs,
                        "kv_cache_usage": scheduler_stats.kv_cache_usage,
                    }

            def log_engine_initialized(self) -> None: ...

            def record_sleep_state(self, *_: Any, **__: Any) -> None: ...

            def record_admission_rejection(self, *_: Any, **__: Any) -> None: ...

        return Logger
