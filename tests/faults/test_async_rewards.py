"""Coroutine functions in their process: at the same time, with a limit, and isolated as all reward functions are."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.rewards import RewardSettings, RewardsSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.extensions.given import give
from adagrpo_ray.rewards import RewardScorer, async_host
from adagrpo_ray.rewards.registry import SETTING
from adagrpo_ray.types import Prompt
from tests.support.builders import make_completion
from tests.support.held import until
from tests.support.user_module import importable

PATIENT_S = 120.0  # of functions that end by themselves, however busy the machine is
TIMEOUT_S = 1.0  # of those that do not
FORMAT = FormatSettings()

# Columns of the prompt select the behaviour.
MODULE = """
import asyncio, ctypes, os, subprocess
from pathlib import Path

running = 0

def plain(completions, **context):
    return [os.getpid() for _ in completions]

async def awaited(completions, do="", folder=None, friends=1, **context):
    global running
    running += 1
    try:
        if do == "meet":  # wait until as many groups as there are friends are here
            while running < friends:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
        if do == "raise":
            raise ValueError("no score today")
        if do == "cancel":
            raise asyncio.CancelledError
        if do == "time out":
            raise TimeoutError
        if do == "be short":
            return []
        if do == "exit":
            os._exit(3)
        if do == "leave":  # a program that outlives the process
            return [subprocess.Popen(["sleep", "600"], close_fds=False).pid]
        if do == "once":  # never ends in the first process, and at once in another one
            if not [*Path(folder).iterdir()]:
                Path(folder, f"began-{os.getpid()}").touch()
                await asyncio.sleep(3600)
        if do == "wait":
            Path(folder, f"began-{os.getpid()}").touch()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                Path(folder, "cancelled").touch()
                raise
        if do == "block":  # inside C, with the interpreter lock held
            Path(folder, f"began-{os.getpid()}").touch()
            ctypes.PyDLL(None).sleep(600)
        if do == "pid":
            return [os.getpid() for _ in completions]
        return [float(len(text)) for text in completions]
    finally:
        running -= 1

async def many(completions, **context):
    return [running for _ in completions]
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with importable("awaiting", MODULE, tmp_path_factory.mktemp("user")) as folder:
        yield folder


def scorer_of(*functions: str, **settings: Any) -> RewardScorer:
    named = [RewardSettings(function=name) for name in functions or ("awaiting:awaited",)]
    given = {"functions": named, "timeout_s": PATIENT_S, "on_error": "score", "error_score": -1.0, **settings}
    return RewardScorer(RewardsSettings.model_validate(given), FORMAT)


@pytest.fixture(scope="module")
def scorer() -> Iterator[RewardScorer]:
    """A scorer of all groups, shared by the tests; each test leaves it usable."""
    scorer = scorer_of()
    yield scorer
    scorer.close()


async def score(scorer: RewardScorer, do: str = "", *texts: str, **columns: object) -> list[float] | str:
    """Return the scores by the last function, or the error."""
    prompt = Prompt("p-7", "6 x 7?", np.zeros(3, np.int32), "42", columns={"do": do, **columns})
    scores, _ = await scorer.score(prompt, [make_completion(text=text) for text in texts or ("ab",)])
    return scores.error or scores.by_function[:, -1].tolist()


def test_groups_are_scored_at_the_same_time_in_one_process(scorer: RewardScorer) -> None:
    async def many() -> list[list[float] | str]:
        # One after another they would wait for each other until the time limit.
        return await asyncio.gather(*(score(scorer, "meet", "x" * n, friends=20) for n in range(20)))

    assert asyncio.run(many()) == [[float(n)] for n in range(20)]
    assert asyncio.run(score(scorer, "pid")) == asyncio.run(score(scorer, "pid"))


def test_no_more_groups_than_allowed_are_scored_at_the_same_time() -> None:
    scorer = scorer_of("awaiting:awaited", "awaiting:many", max_concurrent=3)

    async def many() -> list[list[float] | str]:
        return await asyncio.gather(*(score(scorer, "meet", friends=3) for _ in range(9)))

    try:
        running = [found[0] for found in asyncio.run(many())]
    finally:
        scorer.close()
    assert max(float(number) for number in running) == 3.0


def test_plain_and_coroutine_functions_score_the_same_group() -> None:
    scorer = scorer_of("awaiting:plain", "awaiting:awaited", "exact")

    async def both() -> list[list[float]]:
        prompt = Prompt("p", "?", np.zeros(3, np.int32), "42", columns={"do": "pid"})
        scores, _ = await scorer.score(prompt, [make_completion(text="a"), make_completion(text="b")])
        assert scores.error is None
        return scores.by_function.tolist()

    try:
        first, second = asyncio.run(both())
    finally:
        scorer.close()
    assert first == second
    assert len({os.getpid(), *first[:2]}) == 3, "neither runs in this process, and each kind has its own"
    assert first[2] == 0.0


def test_given_coroutine_function_is_sent_by_value() -> None:
    async def mine(completions: list[str], **context: object) -> list[float]:
        return [3.0 for _ in completions]

    settings = RewardsSettings(functions=(RewardSettings(function="mine"),), timeout_s=PATIENT_S)
    scorer = RewardScorer(settings, FORMAT, give({(SETTING, "mine"): mine}))
    try:
        assert asyncio.run(score(scorer)) == [3.0]
    finally:
        scorer.close()


@pytest.mark.parametrize(
    ("do", "expected"),
    [
        ("raise", "'awaiting:awaited' raised ValueError('no score today')"),
        ("cancel", "'awaiting:awaited' raised CancelledError()"),
        ("time out", "'awaiting:awaited' raised TimeoutError()"),
        ("be short", "'awaiting:awaited' returned 0 scores for 1 completions"),
        ("exit", "ended its process with exit code 3"),
    ],
)
def test_failing_function_costs_its_group_only(scorer: RewardScorer, do: str, expected: str) -> None:
    async def both() -> list[list[float] | str]:
        return await asyncio.gather(score(scorer), score(scorer, do), score(scorer, "", "abc"))

    before, failed, after = asyncio.run(both())
    assert (before, after) == ([2.0], [3.0])
    assert expected in failed
    assert "p-7" in failed


def test_function_that_waits_too_long_is_cancelled(tmp_path: Path) -> None:
    scorer = scorer_of(timeout_s=TIMEOUT_S)
    try:
        late = asyncio.run(score(scorer, "wait", folder=str(tmp_path)))
        assert "awaiting:awaited on prompt 'p-7' did not finish within rewards.timeout_s=1" in late
        assert (tmp_path / "cancelled").exists()
        assert asyncio.run(score(scorer)) == [2.0]
    finally:
        scorer.close()


def test_function_that_blocks_the_loop_costs_its_group_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_host, "GRACE_S", 0.5)
    scorer = scorer_of(timeout_s=TIMEOUT_S)

    async def both() -> list[list[float] | str]:
        assert await score(scorer) == [2.0]  # the functions are loaded
        blocked = asyncio.create_task(score(scorer, "block", folder=str(tmp_path)))
        while not list(tmp_path.iterdir()):
            await asyncio.sleep(0.01)
        return [await score(scorer, "", "abc"), await blocked]

    try:
        fine, blocked = asyncio.run(both())
    finally:
        scorer.close()
    assert fine == [3.0]
    assert "did not finish within rewards.timeout_s=1" in blocked
    assert len(list(tmp_path.iterdir())) == 2, "it was tried again alone"


def test_killed_process_is_replaced_and_its_groups_are_scored(scorer: RewardScorer, tmp_path: Path) -> None:
    async def killed() -> list[list[float] | str]:
        waiting = asyncio.create_task(score(scorer, "once", folder=str(tmp_path)))
        while not (began := list(tmp_path.iterdir())):
            await asyncio.sleep(0.01)
        victim = int(began[0].name.removeprefix("began-"))
        os.kill(victim, signal.SIGKILL)
        assert await score(scorer, "pid") != [victim]
        return [await waiting, await score(scorer)]

    assert asyncio.run(killed()) == [[2.0], [2.0]]


def test_cancelled_scoring_cancels_the_function(scorer: RewardScorer, tmp_path: Path) -> None:
    async def give_up() -> list[float] | str:
        waiting = asyncio.create_task(score(scorer, "wait", folder=str(tmp_path)))
        while not list(tmp_path.iterdir()):
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        until((tmp_path / "cancelled").exists)
        return await score(scorer)

    assert asyncio.run(give_up()) == [2.0]


def test_close_ends_the_process_and_waiting_calls(tmp_path: Path) -> None:
    scorer = scorer_of()

    async def close_meanwhile() -> None:
        waiting = asyncio.create_task(score(scorer, "wait", folder=str(tmp_path)))
        while not list(tmp_path.iterdir()):
            await asyncio.sleep(0.01)
        scorer.close()
        with pytest.raises(RewardError, match="the scorer is closed"):
            await waiting

    asyncio.run(close_meanwhile())
    (began,) = tmp_path.iterdir()
    until(lambda: not Path(f"/proc/{began.name.removeprefix('began-')}").exists())
    assert not (tmp_path / "cancelled").exists(), "it was killed"


def test_close_does_not_wait_for_a_program_that_a_function_left_behind() -> None:
    scorer = scorer_of()
    (left,) = asyncio.run(score(scorer, "leave"))
    closing = Thread(target=scorer.close, daemon=True)
    closing.start()
    closing.join(PATIENT_S)
    ended = not closing.is_alive()
    os.kill(int(left), signal.SIGKILL)
    assert ended
