"""The check of judges and reward models before the start, against a server on this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adagrpo_ray.config.rewards import RewardSettings, RewardsSettings
from adagrpo_ray.config.served_rewards import JudgeSettings, RewardModelSettings
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.rewards import served_check
from adagrpo_ray.rewards.served_check import check_served_rewards
from adagrpo_ray.types import Prompt
from tests.support.reserved import closed_address, silent_address
from tests.support.served_models import entry, judge, reward_model, serving

KEY = "very-secret-key"


def prompt(**columns: object) -> Prompt:
    return Prompt("p", "6 x 7?", np.zeros(3, np.int32), "42", columns=columns)


def check(*models: JudgeSettings | RewardModelSettings, prompts: tuple[Prompt, ...] = (prompt(),)) -> None:
    rewards = RewardsSettings(functions=(RewardSettings(function="exact"), *map(entry, models)))
    check_served_rewards(rewards, prompts)


def refused(*models: JudgeSettings | RewardModelSettings, **more: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        check(*models, **more)
    return str(raised.value)


def test_server_that_has_the_model_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer of-another-server")
    with serving() as server:
        check(judge(base_url=server.url, api_key_env="JUDGE_API_KEY"), reward_model(base_url=f"{server.url}/"))
    assert server.keys == [f"Bearer {KEY}", "Bearer EMPTY"]
    assert server.bodies == [], "no completion was scored"


def test_missing_model_is_an_error_with_the_nearest_one() -> None:
    with serving() as server:
        assert "does not have model='judge-2'; did you mean 'judge-1'?" in refused(
            judge(base_url=server.url, model="judge-2")
        )
        message = refused(judge(base_url=server.url, model="other"))
    assert message.startswith(f"rewards.functions: 'helpful' at {server.url} does not have model='other'; it has ")
    assert message.endswith("it has judge-1, reward-1")


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ((404, {"error": {"message": "nothing here"}}), "has no such path or model (Error code: 404 - nothing here)"),
        ((401, {}), "refuses the key in api_key_env=null"),
        ((500, {}), "answered with an error (Error code: 500)"),
        ((200, "<html>"), "does not list its models at /models; correct base_url"),
        ((200, {"data": [3]}), "does not list its models"),
        ((200, {"data": []}), "does not have model='judge-1'; it has none"),
    ],
)
def test_server_that_answers_wrongly_is_an_error(models: tuple[int, Any], expected: str) -> None:
    with serving(models=models) as server:
        assert expected in refused(judge(base_url=server.url))


def test_address_that_is_none_is_an_error() -> None:
    assert "is no address (Invalid port: 'judge'); correct base_url" in refused(judge(base_url="http://x:judge/v1"))


def test_server_that_is_not_there_is_an_error() -> None:
    with closed_address("127.0.0.1") as address:
        message = refused(judge(base_url=f"http://{address}/v1"))
    assert "cannot be reached (" in message
    assert message.endswith("start the server, or correct base_url")


def test_server_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_check, "PATIENCE_S", 0.2)
    with silent_address("127.0.0.1") as address:
        assert "did not answer within timeout_s=0.2, 2 times" in refused(judge(base_url=f"http://{address}/v1"))


def test_missing_key_is_an_error_before_a_server_is_asked() -> None:
    with serving() as server:
        message = refused(judge(base_url=server.url), reward_model(base_url=server.url, api_key_env="NOT_SET_HERE"))
    assert "'preferred' has api_key_env=NOT_SET_HERE, and this variable is not set" in message
    assert server.keys == []


def test_unknown_placeholder_is_an_error_before_a_server_is_asked() -> None:
    asked = judge(template="{completion} {rubrik}")
    message = refused(asked, prompts=(prompt(rubric="a"), prompt(rubric="b")))
    assert "the template of 'helpful' has {rubrik}, which 2 of 2 prompts do not have" in message
    assert "use completion, prompt, answer, difficulty, rubric, and {{ }} for braces themselves" in message
    some = judge(template="{completion} {rubric}")
    assert "{rubric}, which 1 of 2 prompts do not have" in refused(some, prompts=(prompt(rubric="a"), prompt()))


def test_name_of_a_built_in_function_is_refused() -> None:
    assert "the name 'latex' is that of a built-in function; choose another" in refused(judge(name="latex"))
