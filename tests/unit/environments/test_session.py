"""One episode's session: its environment, its tools and the checks of their replies."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.environments.episode_session import Parts, Session
from adagrpo_ray.environments.protocol import StepResult
from adagrpo_ray.environments.tool_calls import hermes
from adagrpo_ray.errors import ConfigError, ExtensionError
from tests.support.tools import add, hermes_call


async def later(x: str) -> dict[str, str]:
    """Repeat a text.

    Args:
        x: the text
    """
    await asyncio.sleep(0)
    return {"text": x}


def fails(x: int) -> int:
    """Fail.

    Args:
        x: a number
    """
    raise KeyError("gone")


class Echo:
    """Repeats each turn; the third ends it."""

    def __init__(self, greeting: str = "hello") -> None:
        self.greeting, self.turns = greeting, 0
        self.seen: list[Mapping[str, Any]] = []

    def reset(self, row: Mapping[str, Any], seed: int = -1) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{self.greeting} {row['name']} {seed}"}]

    def step(self, message: Mapping[str, Any]) -> tuple[Any, float, bool, dict[str, str]]:
        self.turns += 1
        self.seen.append(message)
        return f"again: {message['content']}", 0.5, self.turns == 3, {"tool": "echo", "error": ""}

    def end(self) -> float:
        return 0.25


class Awaited(Echo):
    """The same with coroutine functions."""

    async def reset(self, row: Mapping[str, Any]) -> None:  # type: ignore[override]
        await asyncio.sleep(0)

    async def step(self, message: Mapping[str, Any]) -> Any:  # type: ignore[override]
        await asyncio.sleep(0)
        return Echo.step(self, message)


def with_session(
    work: Callable[[Session], Any],
    make: Callable[..., Any] | None = None,
    tools: tuple[Callable[..., Any], ...] = (),
    **settings: Any,
) -> Any:
    """The result of the coroutine `work(session)`."""
    named = {"name": "m:E"} if make is not None else {}
    parts = Parts(EnvironmentSettings(**named, **settings), make, tools, hermes)
    with ThreadPoolExecutor(1) as threads:
        return asyncio.run(work(Session(parts, threads)))


@pytest.mark.parametrize("kind", [Echo, Awaited])
def test_environment_answers_until_it_is_done(kind: type[Echo]) -> None:
    async def work(session: Session) -> list[Any]:
        opened = await session.begin({"name": "Ann"}, seed=7)
        return [opened, *[await session.step(text, text) for text in "abc"], await session.end()]

    opened, first, second, third, end = with_session(work, kind, arguments={"greeting": "hi"})
    assert opened == (({"role": "user", "content": "hi Ann 7"},) if kind is Echo else None)
    assert first == StepResult(({"role": "user", "content": "again: a"},), 0.5, done=False, tool="echo")
    assert second.messages[0]["content"] == "again: b"
    assert (third.done, third.messages, end) == (True, (), 0.25)


def test_tools_alone_run_calls_and_end_without_one() -> None:
    async def work(session: Session) -> list[Any]:
        assert await session.begin({}, seed=0) is None
        texts = [hermes_call("add", '{"a": 2, "b": 3}'), hermes_call("later", '{"x": "y"}'), "The sum is 5."]
        return [await session.step(text, text) for text in texts]

    summed, repeated, last = with_session(work, tools=(add, later))
    message = {"role": "tool", "name": "add", "content": "5", "tool_call_id": "call00000"}
    assert summed == StepResult((message,), 0.0, done=False, tool="add")
    assert repeated.messages[0]["content"] == '{"text": "y"}'
    assert last == StepResult((), 0.0, done=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (hermes_call("add", '{"a": 2}'), "error: the argument b is missing"),
        (hermes_call("add", '{"a": "2", "b": 3}'), "error: the argument a must be of type integer"),
        (hermes_call("sub", "{}"), "error: there is no tool sub; use add, fails"),
        (hermes_call("fails", '{"x": 1}'), "error: KeyError: 'gone'"),
        ("<tool_call>{</tool_call>", "error: the call is not valid JSON"),
    ],
)
def test_policy_reads_the_error_of_a_call(text: str, expected: str) -> None:
    async def work(session: Session) -> Any:
        await session.begin({}, seed=0)
        return await session.step(text, text)

    result = with_session(work, tools=(add, fails))
    assert result.messages[0]["content"].startswith(expected)
    assert result.error
    assert not result.done


def test_several_calls_of_a_turn_are_run_in_order() -> None:
    text = (
        hermes_call("add", '{"a": 1, "b": 1}') + hermes_call("add", '{"a": 2}') + hermes_call("add", '{"a": 3, "b": 3}')
    )

    async def work(session: Session) -> Any:
        await session.begin({}, seed=0)
        return await session.step(text, text)

    result = with_session(work, tools=(add,))
    contents = [(m["content"], m["tool_call_id"]) for m in result.messages]
    assert contents == [
        ("2", "call00000"),
        ("error: the argument b is missing", "call00001"),
        ("6", "call00002"),
    ]


def test_environment_with_tools_gets_turns_without_calls() -> None:
    class Shop(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.tools = [self.price]

        def price(self, item: str) -> float:
            """Return a price.

            Args:
                item: its name
            """
            return 2.5

    async def work(session: Session) -> list[StepResult]:
        await session.begin({"name": "Ann"}, seed=0)
        return [await session.step(text, text) for text in (hermes_call("price", '{"item": "tea"}'), "bye")]

    called, said = with_session(work, Shop)
    assert called.messages[0]["content"] == "2.5"
    assert said.messages[0]["content"] == "again: bye"


def test_environment_that_runs_its_own_tools_gets_the_calls() -> None:
    class Own(Echo):
        tools: tuple[dict[str, Any], ...] = ({"type": "function", "function": {"name": "look"}},)

    text = hermes_call("look", '{"x": 1}')

    async def work(session: Session) -> Any:
        await session.begin({"name": "Ann"}, seed=0)
        await session.step(text, text)
        return session._made.seen

    (message,) = with_session(work, Own)
    assert message == {
        "role": "assistant",
        "content": text,
        "tool_calls": [{"type": "function", "id": "call00000", "function": {"name": "look", "arguments": {"x": 1}}}],
    }


def replying(reply: Any) -> type[Echo]:
    class Replying(Echo):
        def step(self, message: Mapping[str, Any]) -> Any:
            return reply

    return Replying


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (None, r"step returned None; return \(messages, reward, done, info\)"),
        (("x", 1.0, True), "return .messages, reward, done, info."),
        ((["x"], 1.0, False, {}), "step returned the message 'x'; give a role"),
        (([{"role": "assistant", "content": "x"}], 1.0, False, {}), "give a role .user, tool. and a text as content"),
        (([{"role": "user", "content": None}], 1.0, False, {}), "give a role"),
        (([], 1.0, False, {}), "as messages; return a text or a list of messages"),
        (("x", math.nan, False, {}), "step returned the reward nan; return a finite number"),
        (("x", "much", False, {}), "step returned the reward 'much'"),
        (("x", 1.0, "yes", {}), "step returned the value 'yes' for done"),
    ],
)
def test_reply_that_breaks_the_protocol_is_an_error(reply: Any, expected: str) -> None:
    async def work(session: Session) -> Any:
        await session.begin({"name": "Ann"}, seed=0)
        return await session.step("x", "x")

    with pytest.raises(ExtensionError, match=expected):
        with_session(work, replying(reply))


def test_reply_may_have_numbers_of_numpy_and_no_messages_at_the_end() -> None:
    import numpy as np

    async def work(session: Session) -> Any:
        await session.begin({"name": "Ann"}, seed=0)
        return await session.step("x", "x")

    reply = (None, np.float32(0.5), np.bool_(True), None)
    assert with_session(work, replying(reply)) == StepResult((), 0.5, done=True)


def test_class_without_step_is_refused() -> None:
    class Half:
        def reset(self, row: Any) -> None: ...

    with pytest.raises(ExtensionError, match="makes a Half, which has no method step"):
        with_session(lambda session: session.begin({}, seed=0), Half)


def test_exit_of_an_environment_ends_its_episode_only() -> None:
    def leaves(*_: Any) -> None:
        raise SystemExit(3)

    quits = type("Quits", (Echo,), {"step": leaves})

    async def work(session: Session) -> Any:
        await session.begin({"name": "Ann"}, seed=0)
        return await session.step("x", "x")

    with pytest.raises(ExtensionError, match=r"it called sys\.exit\(3\)"):
        with_session(work, quits)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two have the name 'add'"):
        with_session(lambda session: session.begin({}, seed=0), tools=(add, add))
