"""The environments, tools and adapters on the page about environments do as it shows."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.environments.episode_session import Session
from adagrpo_ray.environments.fork_server import EpisodeSetup, load
from adagrpo_ray.environments.trl_adapter import TrlEnvironment
from adagrpo_ray.extensions.given import NOTHING
from tests.support.documents import blocks, files
from tests.support.places import ROOT
from tests.support.tools import hermes_call

PAGE = ROOT / "docs" / "environments.md"


@pytest.fixture(autouse=True)
def files_of_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("my_game", "my_tools", "my_trl", "my_verifiers"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def settings(file: str) -> EnvironmentSettings:
    return Config.load(file).environment


def with_session(made: EnvironmentSettings, work: Callable[[Session], Awaitable[Any]]) -> Any:
    parts, _ = load(EpisodeSetup(made, NOTHING, "hermes", ""))
    with ThreadPoolExecutor(1) as threads:
        return asyncio.run(work(Session(parts, threads)))  # type: ignore[arg-type]


async def rewards(session: Session, row: dict[str, Any], *turns: str) -> list[tuple[float, bool]]:
    await session.begin(row, seed=0)
    results = [await session.step(text, text) for text in turns]
    return [(result.reward, result.done) for result in results]


def test_every_configuration_of_the_page_is_valid() -> None:
    trees = [yaml.safe_load(block) for block in blocks(PAGE, "yaml")]
    assert len(trees) == 4
    assert all(Config.model_validate(tree).environment.active for tree in trees)


def test_own_environment() -> None:
    made = settings("game.yaml")
    rows = with_session(made, lambda session: session.rows())
    assert rows[1] == {"prompt": "Count down from 3, one number a turn.", "solution": "3"}
    row = {"answer": "2"}
    counted = with_session(made, lambda session: rewards(session, row, "2", " 1 ", "0"))
    assert counted == [(0.1, False), (0.1, False), (0.1, True)]
    assert with_session(made, lambda session: rewards(session, row, "2", "0")) == [(0.1, False), (0.0, True)]


def test_tool() -> None:
    made = EnvironmentSettings(tools=("my_tools:add",))

    async def work(session: Session) -> list[str]:
        await session.begin({}, seed=0)
        texts = [hermes_call("add", '{"a": 2, "b": 3}'), hermes_call("add", '{"a": "x", "b": 3}')]
        return [str((await session.step(text, text)).messages[0]["content"]) for text in texts]

    assert with_session(made, work) == ["5", "error: the argument a must be of type integer"]


def test_class_for_trl() -> None:
    made = settings("safe.yaml")
    row = {"prompt": "Open the safe.", "code": "123", "problem": "Open the safe.", "answer": "123"}

    async def work(session: Session) -> list[Any]:
        opened = await session.begin(row, seed=0)
        dialled = await session.step(hermes_call("dial", '{"digits": "123"}'), hermes_call("dial", '{"digits": "123"}'))
        ended = await session.step("It is open.", "It is open.")
        return [opened, dialled.messages[0]["content"], (ended.reward, ended.done)]

    opened, dialled, ended = with_session(made, work)
    assert opened == ({"role": "user", "content": "Open the safe. It has 3 digits."},)
    assert (dialled, ended) == ("open", (1.0, True))
    assert with_session(made, lambda session: rewards(session, row, "I do not know.")) == [(0.0, True)]


def test_class_for_trl_is_one_that_trl_takes() -> None:
    """Its tools are the public methods, as TRL 1.16 finds them."""
    safe = importlib.import_module("my_trl").Safe
    assert [tool.__name__ for tool in TrlEnvironment(safe).tools] == ["dial"]


@pytest.mark.skipif(importlib.util.find_spec("verifiers") is None, reason="verifiers is not installed")
def test_environment_of_verifiers() -> None:
    made = settings("verified.yaml")
    rows = with_session(made, lambda session: session.rows())
    assert rows[4]["answer"] == "5"
    row = {**rows[4], "problem": "4+1"}
    assert with_session(made, lambda session: rewards(session, row, "5")) == [(1.0, True)]
    assert with_session(made, lambda session: rewards(session, row, "6")) == [(0.0, True)]

    async def cut(session: Session) -> float:
        await session.begin(row, seed=0)
        return await session.end()

    assert with_session(made, cut) == 0.0
