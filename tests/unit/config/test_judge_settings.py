"""Settings of judges and reward models: errors, which show no key, and the changes that a resumed run may make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.config.fixed import check_fixed, fixed_settings
from adagrpo_ray.config.listing import as_yaml
from adagrpo_ray.config.placeholders import filled, placeholders
from adagrpo_ray.config.served_rewards import JudgeSettings
from adagrpo_ray.errors import ConfigError
from tests.support.settings_files import refusal, written

KEY = "sk-abcdefgh12345678"
YAML = """
rewards:
  correct_by: exact
  functions:
    - {function: exact}
    - weight: 0.5
      judge:
        name: helpful
        model: judge-1
        base_url: http://127.0.0.1:8000/v1
        api_key_env: JUDGE_API_KEY
        template: |
          Rate {completion}, an answer to {prompt}, from 0 to 10.
    - reward_model: {name: preferred, model: reward-1, base_url: "http://127.0.0.1:8001/v1"}
"""


def entry(**changes: Any) -> dict[str, object]:
    """The settings of a judge, or of a reward model; without those that are changed to ""."""
    given = {"name": "helpful", "model": "m", "base_url": "http://x/v1", "template": "{completion}"}
    return {key: value for key, value in {**given, **changes}.items() if value != ""}


def functions(kind: str = "judge", **changes: Any) -> dict[str, object]:
    return {"rewards.functions": [{kind: entry(**changes)}]}


def test_functions_judges_and_reward_models_are_one_list(tmp_path: Path) -> None:
    rewards = Config.load(written(tmp_path, YAML)).rewards
    assert rewards.names == ["exact", "helpful", "preferred"]
    assert [reward.weight for reward in rewards.functions] == [1.0, 0.5, 1.0]
    assert [reward.name for reward in rewards.own] == ["exact"]
    assert [served.name for served in rewards.served] == ["helpful", "preferred"]
    assert (rewards.decides, Config.load(None, functions()).rewards.decides) == ("exact", "helpful")


def test_config_yaml_of_a_run_reads_the_same_entries(tmp_path: Path) -> None:
    config = Config.load(written(tmp_path, YAML))
    text = as_yaml(config)
    assert Config.load(written(tmp_path, text)) == config
    assert "api_key_env: JUDGE_API_KEY" in text


def test_override_changes_one_setting_of_a_judge(tmp_path: Path) -> None:
    path = written(tmp_path, YAML)
    changed = Config.load(path, ["rewards.functions.1.judge.high=5", "rewards.functions.1.judge={retries: 0}"])
    assert changed.rewards.functions[1].judge is not None
    assert (changed.rewards.functions[1].judge.high, changed.rewards.functions[1].judge.retries) == (5.0, 0)
    assert changed.rewards.functions[1].judge.name == "helpful"


# --- errors


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"rewards.functions": [{"weight": 2}]}, "has nothing that scores; give it one of function, judge, reward_"),
        (
            {"rewards.functions": [{"function": "exact", "judge": entry()}]},
            "an entry of rewards.functions has function and judge; give it one of",
        ),
        (functions(name=""), "rewards.functions.0.judge.name is missing; set it"),
        (functions(name="a b"), "rewards.functions.0.judge.name='a b': string should match pattern"),
        (functions(base_url="127.0.0.1:8000"), "rewards.functions.0.judge.base_url='127.0.0.1:8000': string should"),
        (functions(template=""), "the judge 'helpful' has no template; set template or template_file"),
        (functions(template="no braces"), "the template of 'helpful' has no {completion}"),
        (functions(template="{completion} {"), "the template of 'helpful' has wrong braces"),
        (functions(template="{completion:>9}"), "the template of 'helpful' has wrong braces"),
        (functions(template="{completion} {}"), "the template of 'helpful' has wrong braces"),
        (functions(template_file="a.txt"), "has a template, and template_file='a.txt'; give one of them"),
        (functions(template="", template_file="none.txt"), "template_file='none.txt' cannot be read (No such file"),
        (functions(low=3, high=3), "has low=3 and high=3; make high the larger one"),
        (functions(timeout_s=0), "rewards.functions.0.judge.timeout_s=0: input should be greater than 0"),
        (functions(requests_per_minute=0), "rewards.functions.0.judge.requests_per_minute=0: input should be greater"),
        (functions(kind="reward_model", template="{prompt}"), "the template of 'helpful' has no {completion}"),
        (functions(kind="reward_model", high=3), "unknown key 'rewards.functions.0.reward_model.high'"),
        (
            {"rewards.functions": [{"judge": entry()}, {"judge": entry()}]},
            "names a function twice: ['helpful', 'helpful']",
        ),
    ],
)
def test_wrong_judge_is_one_error_with_the_remedy(overrides: dict[str, object], expected: str) -> None:
    (line,) = [line for line in refusal(overrides).splitlines() if expected in line]
    assert line.count(expected) == 1


@pytest.mark.parametrize("name", [KEY, "hf_abcdefghij", "judge-key", "AKIAABCDEFGH1234", "lower_case", ""])
def test_key_in_place_of_its_variable_is_refused_and_not_shown(name: str) -> None:
    message = refusal({"rewards.functions.0.judge": {**entry(), "api_key_env": name}})
    assert "rewards.functions.0.judge.api_key_env is no name of an environment variable in capitals" in message
    assert not name or name not in message


def test_key_in_the_configuration_is_refused_and_not_shown(tmp_path: Path) -> None:
    messages = [
        refusal({"rewards.functions": [{"judge": {**entry(), "api_key": "geheim"}}]}),
        refusal([f"rewards.functions.0.judge.api_key={KEY}"], written(tmp_path, YAML)),
        refusal({"rewards.functions": {"judge": {"api_key": "geheim"}}}),
        refusal([f"rewards.functions.7.judge.api_key={KEY}"], written(tmp_path, YAML)),
        refusal([f"rewards.functions.api_key: {KEY}"]),
    ]
    assert "unknown key 'rewards.functions.0.judge.api_key' (value ***); did you mean" in messages[0]
    assert "rewards.functions.0.judge.api_key_env" in messages[0]
    assert not [message for message in messages if KEY in message or "geheim" in message]


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"api_key": "geheim"}, "api_key"),
        ({"extra_headers": {"Authorization": "Bearer geheim"}}, "Authorization"),
        ({"metadata": {"user": KEY}}, "user"),
        ({"metadata": {"users": ["a", KEY]}}, "users"),
    ],
)
def test_key_in_a_field_of_the_request_is_refused_and_not_shown(extra: dict[str, Any], field: str) -> None:
    message = refusal(functions(extra=extra))
    assert message.startswith(f"rewards.functions.0.judge.extra has a key or token in the field {field!r}, which")
    assert "geheim" not in message
    assert KEY not in message


def test_fields_of_a_request_are_kept(tmp_path: Path) -> None:
    extra = {"stop": ["\n"], "stop_token_ids": [2], "max_tokens": 8, "chat_template_kwargs": {"enable_thinking": False}}
    config = Config.load(None, functions(extra=extra))
    (judge,) = Config.load(written(tmp_path, as_yaml(config))).rewards.served
    assert isinstance(judge, JudgeSettings)
    assert judge.extra == extra


def test_password_in_the_address_is_refused_and_not_shown() -> None:
    message = refusal(functions(base_url="http://user:hunter2@x/v1"))
    assert message.startswith("rewards.functions.0.judge.base_url holds a user, a password or a query")
    assert "hunter2" not in message


# --- templates


def test_template_file_is_read_once_with_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "judge.txt"
    file.write_text("Über {completion}:\n")
    config = Config.load(None, functions(template="", template_file=str(file)))
    (judge,) = config.rewards.served
    assert judge.template == "Über {completion}:\n"
    file.unlink()
    assert Config.load(written(tmp_path, as_yaml(config))) == config


def test_template_is_filled_with_texts_and_json() -> None:
    template = "{{x}} {completion} {numbers} {a b}"
    assert placeholders(template) == ("completion", "numbers", "a b")
    values = {"completion": "{prompt} \ud800", "numbers": [1, "é"], "a b": "c", "unused": 1}
    assert filled(template, values) == '{x} {prompt} ? [1, "é"] c'
    with pytest.raises(KeyError, match="numbers"):
        filled(template, {"completion": ""})


# --- resuming


def test_resumed_run_may_move_the_server_and_not_change_the_judge(tmp_path: Path) -> None:
    path = written(tmp_path, YAML)
    before = json.loads(json.dumps(fixed_settings(Config.load(path))))
    place = "rewards.functions.1.judge"
    moved = ["base_url=http://other/v1", "api_key_env=OTHER", "timeout_s=9", "requests_per_minute=9", "prompt_price=1"]
    check_fixed(Config.load(path, [f"{place}.{change}" for change in moved]), before)
    with pytest.raises(ConfigError, match=r"rewards\.functions was .*judge-1.*judge-2"):
        check_fixed(Config.load(path, [f"{place}.model=judge-2"]), before)


def test_functions_of_an_older_checkpoint_are_the_same() -> None:
    assert fixed_settings(Config())["rewards.functions"] == [{"function": "exact", "weight": 1.0}]
