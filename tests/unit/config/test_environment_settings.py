"""Settings of environments: conflicts, and whether completions are episodes."""

from __future__ import annotations

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.errors import ConfigError

NAMED = "environment.name=m:E"


def test_completions_are_episodes_with_an_environment_or_tools() -> None:
    assert not Config().environment.active
    assert Config.load(None, [NAMED]).environment.active
    assert Config.load(None, ["environment.tools=[m:f]"]).environment.active


@pytest.mark.parametrize(
    ("overrides", "longest"),
    [
        ([], 100),
        (["environment.max_observation_tokens=30"], 100),  # without an environment
        ([NAMED, "environment.max_observation_tokens=30"], 130),
        ([NAMED, "environment.max_observation_tokens=30", "environment.max_turns=1"], 100),  # its step ends it
        ([NAMED, "environment.max_observation_tokens=30", "environment.max_turn_tokens=20"], 130),
        ([NAMED, "environment.max_observation_tokens=30", "environment.max_turn_tokens=10"], 110),  # eight turns
        ([NAMED, "environment.max_turn_tokens=10", "environment.max_turns=1"], 10),
    ],
)
def test_longest_episode_is_that_of_its_limits(overrides: list[str], longest: int) -> None:
    assert Config.load(None, overrides).environment.longest(100) == longest


def test_length_of_the_model_may_have_room_for_an_episode_and_one_token() -> None:
    assert Config.load(None, [NAMED, "rollout.max_model_len=769"]).rollout.max_model_len == 769


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["environment.arguments={a: 1}"], r"environment\.arguments={'a': 1} are those of environment\.name, which is"),
        (["environment.tools=[m:f, m:f]"], r"environment\.tools names a function twice"),
        (["environment.tools=['']"], "environment.tools.0="),
        (["data.source=environment"], r"data\.source=environment takes the rows of environment\.name, which is null"),
        (["rewards.functions=[{function: environment}]"], r"'environment' gives the rewards of environment\.name, whi"),
        ([NAMED, "data.chat_template=none"], r"data\.chat_template=none renders plain text, which cannot separate"),
        (
            [NAMED, "environment.max_turn_tokens=300"],
            r"environment\.max_turn_tokens=300 is more than rollout\.max_new_tokens=256",
        ),
        (["environment.max_turns=0"], r"environment\.max_turns=0"),
        (
            [NAMED, "rollout.max_model_len=768"],
            r"rollout\.max_model_len=768 leaves no room for a prompt next to an episode of up to 768 tokens "
            r"\(rollout\.max_new_tokens=256, environment\.max_observation_tokens=512\); raise the first or lower",
        ),
        (["environment.nmae=x"], "did you mean 'environment.name'"),
    ],
)
def test_conflict_is_one_error_with_key_and_value(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Config.load(None, overrides)


def test_limits_of_processes_may_change_when_a_run_resumes() -> None:
    more = ["environment.processes=3", "environment.timeout_s=9", "environment.memory_gib=1"]
    assert fixed_settings(Config.load(None, [NAMED, *more])) == fixed_settings(Config.load(None, [NAMED]))
    other = fixed_settings(Config.load(None, [NAMED, "environment.max_turns=3"]))
    assert other != fixed_settings(Config.load(None, [NAMED]))
