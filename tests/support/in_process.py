"""Sessions of environments in the process of the test, in place of `Host`: no process of their own, and no limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from adagrpo_ray.environments.episode_session import Session
from adagrpo_ray.environments.fork_server import EpisodeSetup, load
from adagrpo_ray.environments.host import CallError


class InProcess:
    """Has the methods of `Host` that episodes use; `open` counts the groups that are running."""

    def __init__(self, setup: EpisodeSetup) -> None:
        self._parts, self._schemas = load(setup)
        self.open = self.opened = 0
        self.closed = False

    async def tools(self) -> list[dict[str, Any]]:
        return self._schemas

    @asynccontextmanager
    async def sessions(self, number: int) -> AsyncIterator[Direct]:
        self.open += 1
        self.opened += 1
        with ThreadPoolExecutor(number) as threads:
            try:
                yield Direct([Session(self._parts, threads) for _ in range(number)])
            finally:
                self.open -= 1

    def close(self) -> None:
        self.closed = True


class Direct:
    """The sessions of one group."""

    def __init__(self, sessions: list[Session]) -> None:
        self._sessions = sessions

    async def call(self, do: str, session: int = 0, **arguments: Any) -> Any:
        arguments.pop("limit_s", None)
        try:
            found = await getattr(self._sessions[session], do)(**arguments)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise CallError(str(error), type(error).__name__) from None
        return asdict(found) if do == "step" else found
