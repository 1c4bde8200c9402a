"""Environments of verifiers over several turns, through the adapter. Skipped unless verifiers is installed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.environments.episode_session import Session
from adagrpo_ray.environments.fork_server import EpisodeSetup, load
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.given import NOTHING
from tests.support.tools import hermes_call

pytest.importorskip("verifiers", reason="verifiers is not installed")

# A function that makes each environment; the one of several turns counts up with the policy.
MODULE = '''
import verifiers as vf
from datasets import Dataset

DATA = Dataset.from_list([{"question": "Count to three.", "answer": "3"}])


def correct(completion, answer):
    return float(completion[-1]["content"].strip() == answer)


async def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first number
        b: the second number
    """
    return a + b


def with_tools():
    return vf.ToolEnv(dataset=DATA, tools=[add], rubric=vf.Rubric(funcs=[correct]), max_turns=4)


class Counting(vf.MultiTurnEnv):
    @vf.stop
    async def counted(self, state):
        return bool(state["trajectory"]) and state["trajectory"][-1]["completion"][-1]["content"] == "3"

    async def env_response(self, messages, state, **kwargs):
        if messages[-1]["content"] == "fail":
            raise vf.ToolError("no answer today")
        return [{"role": "user", "content": f"after {messages[-1]['content']}?"}]


def with_turns():
    return Counting(dataset=DATA, rubric=vf.Rubric(funcs=[correct]), max_turns=8)


def with_groups():
    def best(completions):
        return [1.0] * len(completions)

    return vf.SingleTurnEnv(dataset=DATA, rubric=vf.Rubric(funcs=[best]))
'''
ROW = {"problem": "Count to three.", "answer": "3"}


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "verified_xyz.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "verified_xyz", raising=False)


def with_session(function: str, work: Callable[[Session], Awaitable[Any]]) -> Any:
    settings = EnvironmentSettings(
        name="adagrpo_ray.environments.verifiers_adapter:VerifiersEnvironment",
        arguments={"environment": f"verified_xyz:{function}"},
    )
    parts, _ = load(EpisodeSetup(settings, NOTHING, "hermes", ""))

    async def whole() -> Any:
        session = Session(parts, threads)
        try:
            return await work(session)
        finally:
            await session.close()

    with ThreadPoolExecutor(1) as threads:
        return asyncio.run(whole())


def test_environment_of_several_turns_answers_and_gives_its_reward_at_the_end() -> None:
    async def work(session: Session) -> list[Any]:
        opened = await session.begin(ROW, seed=0)
        steps = [await session.step(text, text) for text in ("1", "2", "3")]
        return [opened, *((step.messages, step.reward, step.done) for step in steps)]

    opened, first, second, last = with_session("with_turns", work)
    assert opened is None
    assert first == (({"role": "user", "content": "after 1?"},), 0.0, False)
    assert second == (({"role": "user", "content": "after 2?"},), 0.0, False)
    assert last == ((), 1.0, True)


def test_limit_of_the_trainer_ends_the_rollout_with_its_reward() -> None:
    async def work(session: Session) -> float:
        await session.begin(ROW, seed=0)
        await session.step("1", "1")
        return await session.end()

    assert with_session("with_turns", work) == 0.0


def test_tools_are_run_by_the_environment() -> None:
    call = hermes_call("add", '{"a": 1, "b": 2}')

    async def work(session: Session) -> list[Any]:
        await session.begin(ROW, seed=0)
        called = await session.step("", call)
        answered = await session.step("3", "3")
        return [called.messages[0]["role"], called.messages[0]["content"], (answered.reward, answered.done)]

    assert with_session("with_tools", work) == ["tool", "3", (1.0, True)]


def test_error_of_the_environment_fails_the_episode() -> None:
    async def work(session: Session) -> None:
        await session.begin(ROW, seed=0)
        await session.step("fail", "fail")

    with pytest.raises(ExtensionError, match=r"the rollout of verifiers failed: .*no answer today"):
        with_session("with_turns", work)


def test_rubric_of_a_group_is_refused() -> None:
    async def work(session: Session) -> None:
        pytest.fail("it was loaded")

    with pytest.raises(ConfigError, match="has a rubric that scores a group of rollouts together"):
        with_session("with_groups", work)
