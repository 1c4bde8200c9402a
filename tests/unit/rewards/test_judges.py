"""Judges and reward models over a transport without a network, in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import numpy as np
import pytest

from adagrpo_ray.config.served_rewards import JudgeSettings, RewardModelSettings
from adagrpo_ray.errors import ConfigError, RewardError
from adagrpo_ray.rewards.consumption import Consumption, counted_for
from adagrpo_ray.rewards.rate_limit import RateLimit
from adagrpo_ray.rewards.served import ServedReward
from adagrpo_ray.runs.judge_counts import KINDS
from adagrpo_ray.types import Prompt
from tests.support.loops import run_in_virtual_time
from tests.support.served_models import Body, Transport, chat, judge, pooled, response, reward_model, scored

KEY = "very-secret-key"
PROMPT = Prompt("p-7", "6 x 7?", np.zeros(3, np.int32), "42", "easy", {"source": "x", "rubric": ["a", 1]})


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)


@pytest.fixture(autouse=True)
def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first request openai's client asks a thread for the platform; virtual time would not wait for it."""

    async def platform() -> str:
        return "Linux"

    monkeypatch.setattr("openai._base_client.asyncify", lambda function: platform)


def answering(*replies: Any) -> Callable[[Body], Awaitable[httpx2.Response]]:
    """Replies in their order, the last one again and again; a number is a judge's score."""
    left = list(replies)

    async def reply(body: Body) -> httpx2.Response:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, httpx2.Response):
            return httpx2.Response(found.status_code, content=found.content, headers=found.headers)
        return response(scored(found) if isinstance(found, int | float) else found)

    return reply


def score(
    transport: Transport, *texts: str, settings: JudgeSettings | RewardModelSettings | None = None
) -> tuple[list[float] | str, float, Consumption]:
    """Score the texts. Returns the scores or the error, the virtual seconds that it took, and the consumption."""

    async def work() -> tuple[list[float] | str, float, Consumption]:
        model = ServedReward(settings or judge(), transport)
        try:
            found: list[float] | str = await model.score(PROMPT, texts)
        except RewardError as error:
            found = str(error)
        took = asyncio.get_running_loop().time()
        model.close()
        return found, took, model.consumption()

    return run_in_virtual_time(work())


# --- judges


def test_score_is_the_place_between_low_and_high() -> None:
    transport = Transport(answering(0, 5, 10))
    assert score(transport, "a", "b", "c")[0] == [0.0, 0.5, 1.0]
    shifted = judge(low=-1, high=1)
    assert score(Transport(answering(-0.5)), "a", settings=shifted)[0] == [0.25]


def test_request_has_the_filled_template_the_schema_and_the_key() -> None:
    settings = judge(
        template="{completion} for {prompt} ({rubric}, {difficulty})",
        system="Be strict.",
        api_key_env="JUDGE_API_KEY",
        extra={"chat_template_kwargs": {"enable_thinking": False}},
    )
    transport = Transport(answering(1))
    score(transport, "the {prompt}", settings=settings)
    (body,), (request,) = transport.bodies, transport.requests
    assert str(request.url) == "http://judge.test/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert body["messages"] == [
        {"role": "system", "content": "Be strict."},
        {"role": "user", "content": 'the {prompt} for 6 x 7? (["a", 1], easy)'},
    ]
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("judge-1", 0.0, 256)
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"score": {"type": "number", "minimum": 0.0, "maximum": 10.0}}
    assert schema["required"] == ["score"]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_no_key_of_the_environment_is_sent_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Gateway: {KEY}\nAuthorization: Bearer {KEY}")
    transport = Transport(answering(1))
    score(transport, "a")
    headers = transport.requests[0].headers
    assert KEY not in str(headers.raw)
    assert headers["authorization"] == "Bearer EMPTY"
    assert {"openai-organization", "openai-project", "x-gateway"}.isdisjoint(headers)


def test_free_text_is_scored_by_its_last_number() -> None:
    settings = judge(reply="number", temperature=None)
    texts = ["7/10", "Step 1 is right, 2 is not.\nScore: 8 out of 10", "**3.5**", "10"]
    transport = Transport(answering(*map(chat, texts)))
    assert score(transport, "a", "b", "c", "d", settings=settings)[0] == [0.7, 0.8, 0.35, 1.0]
    assert {"response_format", "temperature"}.isdisjoint(transport.bodies[0])


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (chat("seven"), "replied 'seven', which has no JSON with a number as \"score\"; change the template"),
        (chat('{"score": "7"}'), "which has no JSON with a number"),
        (chat('{"score": true}'), "which has no JSON with a number"),
        (chat('{"score": NaN}'), "which has no JSON with a number"),
        (chat("[" * 5000), "which has no JSON with a number"),
        (chat('{"score": 7', "length"), 'which has no JSON with a number as "score"; raise max_tokens=256'),
        (chat(None), "replied '', which has no JSON"),
        (chat('{"score": 11}'), "gave the score 11, which is not between low=0 and high=10"),
        ({"choices": []}, "which is no chat completion; correct base_url"),
        ({"choices": [{"message": 3}]}, "which is no chat completion"),
        ([1, 2], "replied [1, 2], which is no chat completion"),
        (httpx2.Response(200, text="<html>"), "replied '<html>', which is no chat completion"),
        (
            httpx2.Response(200, text="{", headers={"content-type": "application/json"}),
            "answered with something that is no JSON",
        ),
    ],
)
def test_nonsense_is_an_error_and_no_score(reply: Any, expected: str) -> None:
    found, _, consumed = score(Transport(answering(reply)), "a", settings=judge(retries=0))
    assert isinstance(found, str)
    assert found.startswith("rewards.functions: 'helpful' at http://judge.test/v1 ")
    assert expected in found
    assert "\n" not in found
    assert consumed.failures == 1


# --- failures and their limits


def test_failed_request_is_repeated() -> None:
    transport = Transport(answering(httpx2.Response(500), httpx2.Response(503), 10))
    found, took, consumed = score(transport, "a")
    assert found == [1.0]
    assert (consumed.requests, consumed.failures) == (3, 0)
    assert 0 < took < 10


def test_retry_after_of_the_server_is_kept() -> None:
    full = response({"error": {"message": "slow down"}}, 429, retry_after="17")
    found, took, _ = score(Transport(answering(full, 10)), "a")
    assert (found, took) == ([1.0], 17.0)


def test_too_many_failures_are_an_error_with_the_remedy() -> None:
    full = response({"error": {"message": "slow down"}}, 429, retry_after="1")
    found, took, consumed = score(Transport(answering(full)), "a", settings=judge(retries=3))
    assert "refused too many requests" in found
    assert "slow down" in found
    assert "lower requests_per_minute or max_concurrent, or raise retries" in found
    assert (took, consumed.requests) == (3.0, 4)


@pytest.mark.parametrize(("status", "expected"), [(404, "correct base_url"), (400, "answered with an error")])
def test_refusal_is_not_repeated(status: int, expected: str) -> None:
    found, _, consumed = score(Transport(answering(response({"error": {"message": "no"}}, status))), "a")
    assert expected in found
    assert consumed.requests == 1


async def never(body: Body) -> httpx2.Response:
    await asyncio.Event().wait()
    raise AssertionError("nothing sets the event")


class Drips(httpx2.AsyncByteStream):
    """A body of one byte a second, without an end."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(1)


async def dripping(body: Body) -> httpx2.Response:
    return httpx2.Response(200, stream=Drips(), headers={"content-type": "application/json"})


@pytest.mark.parametrize("reply", [never, dripping])
def test_judge_that_hangs_fails_after_its_time_limit(reply: Callable[[Body], Awaitable[httpx2.Response]]) -> None:
    found, took, consumed = score(Transport(reply), "a", settings=judge(timeout_s=20, retries=1))
    assert "did not answer within timeout_s=20, 2 times; raise it, or lower max_concurrent" in found
    assert consumed.requests == 2
    assert 40 <= took <= 41, "both requests, and the pause between them"


def test_failure_of_one_completion_cancels_the_others() -> None:
    async def reply(body: Body) -> httpx2.Response:
        return await never(body) if "slow" in json.dumps(body) else httpx2.Response(400)

    found, took, _ = score(Transport(reply), "slow", "wrong")
    assert "answered with an error" in found
    assert took < 1


def test_unreachable_server_is_an_error_with_the_reason() -> None:
    async def reply(body: Body) -> httpx2.Response:
        raise httpx2.ConnectError("connection refused")

    found, _, _ = score(Transport(reply), "a")
    assert "cannot be reached (connection refused); start the server, or correct base_url" in found


def test_cancelled_scoring_cancels_its_requests() -> None:
    ended: list[str] = []

    async def reply(body: Body) -> httpx2.Response:
        try:
            return await never(body)
        finally:
            ended.append("request")

    async def work() -> None:
        transport = Transport(reply)
        model = ServedReward(judge(max_concurrent=2), transport)
        scoring = asyncio.create_task(model.score(PROMPT, ["a", "b", "c"]))
        while len(transport.requests) < 2:
            await asyncio.sleep(0.001)
        scoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scoring
        assert (len(ended), len(transport.requests)) == (2, 2), "the third one waited for its turn"
        transport.reply = answering(10)
        assert await model.score(PROMPT, ["a"]) == [1.0], "the turns are free again"

    asyncio.run(work())


# --- keys


def test_key_is_in_no_message() -> None:
    echo = response({"error": {"message": f"{'x' * 270} wrong key {KEY}"}}, 401)
    at_the_cut = [chat("x" * filled + KEY) for filled in range(180, 201)]
    for reply in (echo, chat(f"your key is {KEY}"), *at_the_cut):
        found, _, _ = score(Transport(answering(reply)), "a", settings=judge(api_key_env="JUDGE_API_KEY"))
        assert isinstance(found, str)
        assert "ve" not in found.partition("replied")[2].partition("which")[0]
        assert "very-sec" not in found


def test_key_with_quotes_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", key := "a'b\"c\\d")
    for reply in (response({"error": {"message": f"wrong key {key}"}}, 401), chat(f"your key is {key}")):
        found, _, _ = score(Transport(answering(reply)), "a", settings=judge(api_key_env="JUDGE_API_KEY"))
        assert isinstance(found, str)
        assert "***" in found
        assert 'b"c' not in found.replace("\\", "")


def test_refused_key_names_its_variable() -> None:
    found, _, _ = score(Transport(answering(response({}, 401))), "a", settings=judge(api_key_env="JUDGE_API_KEY"))
    assert "refuses the key in api_key_env=JUDGE_API_KEY" in found


@pytest.mark.parametrize("value", [None, " "])
def test_missing_key_is_an_error_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("JUDGE_API_KEY") if value is None else monkeypatch.setenv("JUDGE_API_KEY", value)
    with pytest.raises(ConfigError, match=r"'helpful' has api_key_env=JUDGE_API_KEY, and this variable is not set on"):
        ServedReward(judge(api_key_env="JUDGE_API_KEY"))


@pytest.mark.parametrize("value", ["two words", "a\nb", "schlüssel"])
def test_key_that_no_header_can_have_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", value)
    with pytest.raises(ConfigError, match="holds spaces or characters that no key has") as raised:
        ServedReward(judge(api_key_env="JUDGE_API_KEY"))
    assert value not in str(raised.value)


# --- the cache


def asked(bodies: list[Body]) -> list[str]:
    return [body["messages"][-1]["content"] for body in bodies]


def of_groups(settings: JudgeSettings, *groups: list[str]) -> tuple[list[list[float]], list[str], Consumption]:
    """Score one group after another; returns the scores, the requests and the consumption."""
    transport = Transport(answering(*range(11)))

    async def work() -> tuple[list[list[float]], Consumption]:
        model = ServedReward(settings, transport)
        return [await model.score(PROMPT, group) for group in groups], model.consumption()

    scores, consumed = run_in_virtual_time(work())
    return scores, asked(transport.bodies), consumed


def test_equal_requests_are_sent_once() -> None:
    scores, requests, consumed = of_groups(judge(template="{completion}"), ["a", "a", "b"], ["b", "c"])
    assert scores == [[0.0, 0.0, 0.1], [0.1, 0.2]]
    assert requests == ["a", "b", "c"]
    assert consumed.cache_hits == 2


def test_oldest_scores_leave_a_full_cache() -> None:
    settings = judge(template="{completion}", cache_entries=2, max_concurrent=1)
    _, requests, _ = of_groups(settings, ["a"], ["b"], ["a"], ["c"], ["a"], ["b"])
    assert requests == ["a", "b", "c", "b"], "a was used again before c came, and b was not"


def test_cache_of_no_entries_sends_every_request() -> None:
    _, requests, consumed = of_groups(judge(template="{completion}", cache_entries=0), ["a", "a"], ["a"])
    assert requests == ["a", "a", "a"]
    assert consumed.cache_hits == 0


def test_failures_are_not_kept() -> None:
    async def work() -> list[float]:
        model = ServedReward(judge(), Transport(answering(httpx2.Response(400), 10)))
        with pytest.raises(RewardError):
            await model.score(PROMPT, ["a"])
        return await model.score(PROMPT, ["a"])

    assert run_in_virtual_time(work()) == [1.0]


# --- limits of requests


def test_requests_begin_with_equal_gaps_and_so_do_repeated_ones() -> None:
    begun: list[float] = []

    async def reply(body: Body) -> httpx2.Response:
        begun.append(asyncio.get_running_loop().time())
        return httpx2.Response(500) if len(begun) == 1 else response(scored(1))

    score(Transport(reply), "a", "b", "c", settings=judge(requests_per_minute=6))
    assert len(begun) == 4
    assert begun == pytest.approx([0.0, 10.0, 20.0, 30.0])


def test_cancelled_waiter_leaves_no_gap() -> None:
    async def work() -> float:
        limit = RateLimit(1)
        waiters = [asyncio.create_task(limit.wait()) for _ in range(100)]
        await waiters[0]
        for waiter in waiters[1:]:
            waiter.cancel()
        await limit.wait()
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(work()) == 60.0


def test_no_more_requests_run_at_the_same_time_than_allowed() -> None:
    running, most = 0, 0

    async def reply(body: Body) -> httpx2.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return response(scored(1))

    _, took, _ = score(Transport(reply), *"abcdefghij", settings=judge(max_concurrent=4))
    assert (most, took) == (4, 3.0)


# --- consumption


def test_tokens_and_costs_are_counted_since_the_last_report() -> None:
    async def work() -> list[Consumption]:
        replies = answering(scored(1), chat("nonsense", tokens=(50, 7)), {"choices": []})
        model = ServedReward(judge(prompt_price=2.0, completion_price=10.0), Transport(replies))
        await model.score(PROMPT, ["a", "a"])
        found = [model.consumption()]
        for text in ("b", "c"):
            with pytest.raises(RewardError):
                await model.score(PROMPT, [text])
        return [*found, model.consumption(), model.consumption()]

    first, second, third = run_in_virtual_time(work())
    assert first == Consumption(1, 100, 5, cache_hits=1, failures=0, cost=pytest.approx((100 * 2 + 5 * 10) / 1e6))
    assert second == Consumption(2, 50, 7, cache_hits=0, failures=2, cost=pytest.approx((50 * 2 + 7 * 10) / 1e6))
    assert third == Consumption(cost=0.0)


def test_consumption_is_counted_by_purpose() -> None:
    """Two purposes at the same time, each with a request that is repeated and one from the cache."""

    async def work() -> list[Consumption]:
        replies = answering(httpx2.Response(500), httpx2.Response(500), scored(1), scored(1))
        model = ServedReward(judge(template="{completion}", prompt_price=1.0), Transport(replies))

        async def evaluate() -> None:
            with counted_for("evaluation"):
                await model.score(PROMPT, ["a", "a"])

        await asyncio.gather(evaluate(), model.score(PROMPT, ["b", "b"]))
        return [model.consumption(), model.consumption("evaluation"), model.consumption("evaluation")]

    of_steps, of_evaluation, nothing = run_in_virtual_time(work())
    assert of_steps == of_evaluation == Consumption(2, 100, 5, cache_hits=1, cost=pytest.approx(1e-4))
    assert of_evaluation.counts.keys() == set(KINDS)
    assert nothing == Consumption(cost=0.0)


@pytest.mark.parametrize("tokens", [pytest.param(10**400, id="googols"), -1, 1.5, "many", None])
def test_nonsense_as_the_number_of_tokens_is_not_counted(tokens: Any) -> None:
    reply = {**scored(5), "usage": {"prompt_tokens": tokens, "completion_tokens": 3}}
    found, _, consumed = score(Transport(answering(reply)), "a", settings=judge(prompt_price=1.0))
    assert found == [0.5]
    assert (consumed.prompt_tokens, consumed.completion_tokens, consumed.cost) == (0, 0, 0.0)


def test_without_prices_there_is_no_cost() -> None:
    assert score(Transport(answering(1)), "a")[2].cost is None


# --- reward models


def test_reward_model_scores_the_prompt_and_the_completion_as_a_chat() -> None:
    transport = Transport(answering(pooled(-1.25)))
    found, _, consumed = score(transport, "forty-two", settings=reward_model(prompt_price=1.0))
    assert found == [-1.25]
    assert str(transport.requests[0].url) == "http://reward.test/pooling"
    assert transport.bodies == [
        {
            "model": "reward-1",
            "use_activation": False,
            "messages": [
                {"role": "user", "content": "6 x 7?"},
                {"role": "assistant", "content": "forty-two"},
            ],
        }
    ]
    assert (consumed.prompt_tokens, consumed.completion_tokens) == (40, 0)
    assert consumed.cost == pytest.approx(40 / 1e6)


def test_reward_model_with_a_template_scores_a_text() -> None:
    transport = Transport(answering(pooled(1)))
    settings = reward_model(template="{prompt} {completion}", activation=True, base_url="http://reward.test/")
    assert score(transport, "42", settings=settings)[0] == [1.0]
    assert str(transport.requests[0].url) == "http://reward.test/pooling"
    assert transport.bodies == [{"model": "reward-1", "use_activation": True, "input": "6 x 7? 42"}]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (pooled(0.1, 0.9), "gave 2 numbers for a completion; serve a reward model with one label"),
        (pooled(), "gave 0 numbers"),
        (pooled([0.1], [0.2]), "which is no output of a reward model"),
        (pooled("0.5"), "which is no output of a reward model"),
        (pooled(None), "which is no output of a reward model"),
        (scored(1), "which is no output of a reward model"),
    ],
)
def test_other_outputs_than_one_number_are_errors(reply: Body, expected: str) -> None:
    found, _, _ = score(Transport(answering(reply)), "a", settings=reward_model())
    assert expected in found
