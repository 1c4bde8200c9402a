"""Runs coroutines whose results are large."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


def run(work: Awaitable[T]) -> T:
    """Return the result of `work`, as asyncio.run does.

    In Python 3.11, asyncio.run also makes a text of its task, with the result, when it sets and resets the handler of
    SIGINT. For a step of groups that takes twenty times as long as the step.
    """
    results: list[T] = []

    async def until_done() -> None:
        results.append(await work)

    asyncio.run(until_done())
    return results[0]
