"""The rate limit of requests to a server."""

from __future__ import annotations

import asyncio


class RateLimit:
    """Lets requests begin one after another, with equal gaps: at most `per_minute` in any minute; None: no gaps.

    A waiter that is cancelled leaves no gap behind.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._gap_s = 0.0 if per_minute is None else 60.0 / per_minute
        self._free_at = 0.0  # in the time of the event loop
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """Wait until the next request may begin."""
        if not self._gap_s:
            return
        clock = asyncio.get_running_loop().time
        async with self._turn:
            await asyncio.sleep(max(0.0, self._free_at - clock()))
            self._free_at = clock() + self._gap_s
