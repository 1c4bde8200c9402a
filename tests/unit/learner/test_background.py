"""Coroutines in a background thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from adagrpo_ray.learner.background import Background

pytestmark = pytest.mark.faults


def test_started_coroutines_run_in_the_background_in_their_order() -> None:
    async def work(started: list[int], number: int) -> int:
        started.append(number)
        await asyncio.sleep(0)
        return number

    background, started = Background(), list[int]()
    tasks = [background.start(work(started, number)) for number in range(5)]
    assert all(background.wait(task, timeout_s=120.0) for task in tasks)
    assert [task.result() for task in tasks] == [0, 1, 2, 3, 4]
    assert started == [0, 1, 2, 3, 4], "coroutines start in their order"
    background.close()


def test_run_raises_the_error_of_its_coroutine() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    background = Background()
    with pytest.raises(ValueError, match="broken"):
        background.run(fail())
    background.close()


def test_call_runs_a_function_in_the_thread_of_the_coroutines() -> None:
    async def here() -> threading.Thread:
        return threading.current_thread()

    background = Background()
    assert background.call(threading.current_thread) is background.run(here()) is not threading.current_thread()
    background.close()


def test_close_cancels_running_tasks_and_lets_them_clean_up() -> None:
    cleaned = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    background = Background()
    task = background.start(forever())
    assert not background.wait(task, timeout_s=0.01)
    background.close()
    assert cleaned == [True]
    assert task.cancelled()


def test_cancel_ends_only_the_given_tasks() -> None:
    async def forever(ended: list[str], name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    background, ended = Background(), list[str]()
    first, second = background.start(forever(ended, "first")), background.start(forever(ended, "second"))
    background.run(asyncio.sleep(0))
    background.cancel([first])
    assert ended == ["first"]
    assert not background.wait(second, timeout_s=0.0)
    background.close()
