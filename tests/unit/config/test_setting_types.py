"""Values of settings keep their type: YAML 1.2 is read by the type of the setting, Python values are unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from adagrpo_ray.config import Config
from adagrpo_ray.config.algorithm import RungSettings, TriggerSettings
from adagrpo_ray.config.learner import LearnerSettings
from adagrpo_ray.config.listing import as_yaml
from adagrpo_ray.config.yaml_text import dump, parse, resolved
from tests.support.settings_files import refusal, written


def value(config: Config, key: str) -> Any:
    found: Any = config.model_dump()
    for name in key.split("."):
        found = found[int(name)] if isinstance(found, tuple) else found[name]
    return found


# --- keys ---


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("run: {steps: 5}\nlearner: {ranks: 2}\nrun: {seed: 1}\n", 3, "run"),
        ("run:\n  steps: 5\n  seed: 1\n  steps: 6\n", 4, "steps"),
        (
            "algorithm:\n  triggers:\n    - {from_step: 1, rungs: []}\n    - from_step: 2\n      from_step: 3\n",
            5,
            "from_step",
        ),
        ("arithmetic:\n  keep_carry:\n    2: 0.5\n    '2': 0.6\n", 4, "2"),
        ("model: {lora: {r: 8, alpha: 1, r: 16}}\n", 1, "r"),
        ("x: &x {steps: 5}\nrun:\n  <<: *x\n  <<: *x\n", 4, "<<"),
    ],
)
def test_duplicate_key_is_refused_with_line(tmp_path: Path, text: str, line: int, key: str) -> None:
    path = written(tmp_path, text)
    message = refusal([], path)
    assert message.startswith(f"the configuration {path} is not valid YAML at line {line}, column ")
    assert f"the key {key!r} is given twice, first at line" in message


def test_duplicate_key_in_override_is_refused() -> None:
    message = refusal(["learner={ranks: 2, cpus: 1, ranks: 3}"])
    assert message.startswith(
        "the value of learner is not valid YAML at line 1, column 21: the key 'ranks' is given twice"
    )


def test_two_spellings_of_a_number_are_one_key() -> None:
    assert "the key 2 is given twice" in refusal({"arithmetic.keep_carry": {2: 0.5, "2": 0.4}})


def test_merge_key_adds_missing_entries(tmp_path: Path) -> None:
    text = "rollout: &x {cpus: 2, resources: {a: 1}}\nlearner: {<<: *x, cpus: 3}\n"
    config = Config.load(written(tmp_path, text))
    assert (config.learner.cpus, config.learner.resources) == (3.0, {"a": 1.0})


def test_override_changes_one_of_two_aliases(tmp_path: Path) -> None:
    path = written(tmp_path, "rollout: {resources: &x {a: 1}}\nlearner: {resources: *x}\n")
    config = Config.load(path, ["learner.resources.a=5"])
    assert (config.rollout.resources, config.learner.resources) == ({"a": 1.0}, {"a": 5.0})


def test_section_override_keeps_other_keys(tmp_path: Path) -> None:
    path = written(tmp_path, "learner: {learning_rate: 1.0e-3}\nmodel: {lora: {r: 8}}\n")
    config = Config.load(path, ["learner.cpus=3", "learner={ranks: 2}", "model={lora: {alpha: 4}}"])
    learner, lora = config.learner, config.model.lora
    assert (learner.learning_rate, learner.cpus, learner.ranks) == (1e-3, 3.0, 2)
    assert (lora.r, lora.alpha) == (8, 4.0)


def test_override_replaces_mapping_of_user_names(tmp_path: Path) -> None:
    path = written(tmp_path, "arithmetic: {keep_carry: {2: 0.9, 3: 0.5}}\n")
    assert Config.load(path, ["arithmetic.keep_carry={4: 0.1}"]).arithmetic.keep_carry == {4: 0.1}


def test_override_reaches_into_defaults() -> None:
    config = Config.load(None, ["arithmetic.keep_carry.2=0.5", "algorithm.triggers.0.rungs.0.temperature=1.5"])
    assert config.arithmetic.keep_carry == {**Config().arithmetic.keep_carry, 2: 0.5}
    assert config.algorithm.triggers[0].rungs[0] == RungSettings(temperature=1.5, min_p=0.05)


@pytest.mark.parametrize("override", ["run.name=", "run.name= ", "learner="])
def test_override_without_value_is_refused(override: str) -> None:
    assert f"the override {override!r} has no value; write " in refusal([override])


@pytest.mark.parametrize("text", ["learner=5", "learner=null", "learner=[1]", "learner=x"])
def test_value_in_place_of_section_is_refused(text: str) -> None:
    assert "learner is a section, write its keys as learner.KEY=VALUE" in refusal([text])


def test_key_that_is_no_text_is_refused() -> None:
    assert refusal({5: 3}) == "overrides have the key 5; give dotted keys, as in 'learner.learning_rate'"


# --- values ---


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.steps=+5", 5),
        ("run.steps=0x10", 16),
        ("run.steps=0o10", 8),
        ("learner.learning_rate=1e-4", 1e-4),
        ("learner.learning_rate=1E-4", 1e-4),
        ("learner.learning_rate=1", 1.0),
        ("learner.learning_rate=.5", 0.5),
        ("run.report=false", False),
        ("run.report=True", True),
        ("run.name=2024-01-01", "2024-01-01"),
        ("run.name=123", "123"),
        ("run.name=010", "010"),
        ("run.name=1e5", "1e5"),
        ("run.name=no", "no"),
        ("run.name=true", "true"),
        ("run.name=null", None),
        ("run.name='null'", "null"),
        ("model.path=123", "123"),
        ("algorithm.loss.correction=none", "none"),
        ("algorithm.budget=~", None),
        ("tracking.tags=[2024, yes, 1e5]", ("2024", "yes", "1e5")),
        ("arithmetic.keep_carry={2: 0.5, '3': 1}", {2: 0.5, 3: 1.0}),
        (
            "data.template_kwargs={a: false, b: [1, 1e3, x], c: '2', d: null, e: {f: 2}}",
            {"a": False, "b": [1, 1000.0, "x"], "c": "2", "d": None, "e": {"f": 2}},
        ),
    ],
)
def test_plain_value_has_type_of_its_setting(override: str, expected: object) -> None:
    found = value(Config.load(None, [override]), override.partition("=")[0])
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.steps=yes", "run.steps=yes: input should be a valid integer"),
        ("run.steps=true", "run.steps=true: input should be a valid integer"),
        ("run.steps=null", "run.steps=null: input should be a valid integer"),
        ("run.steps=1_000", "run.steps='1_000': input should be a valid integer"),
        ("run.steps=1:30", "run.steps='1:30': input should be a valid integer"),
        ("run.steps=2024-01-01", "run.steps='2024-01-01': input should be a valid integer"),
        ("run.steps=٣", "run.steps='٣': input should be a valid integer"),
        ("run.steps='8'", "run.steps='8': input should be a valid integer; write 8 without quotes"),
        ("run.steps=8.0", "run.steps=8.0: input should be a valid integer, not a fraction; write 8"),
        ("run.steps=1e3", "run.steps=1e3: input should be a valid integer, not a fraction; write 1000"),
        ("run.steps=010", "run.steps=010: a number that begins with 0 is octal to some readers of YAML; write 10"),
        ("learner.learning_rate=01", "learner.learning_rate=01: a number that begins with 0 is octal"),
        ("learner.learning_rate='1e-4'", "learner.learning_rate='1e-4': input should be a valid number; write 0.0001"),
        ("learner.learning_rate=false", "learner.learning_rate=false: input should be a valid number"),
        ("learner.learning_rate=.inf", "learner.learning_rate=inf: input should be a finite number"),
        ("learner.learning_rate=.nan", "learner.learning_rate=nan: input should be a finite number"),
        ("learner.weight_decay=" + "9" * 400, "learner.weight_decay="),
        ("run.seed=" + "9" * 5000, "run.seed="),
        ("run.report=yes", "run.report=yes: input should be true or false"),
        ("run.report=on", "run.report=on: input should be true or false"),
        ("run.report=1", "run.report=1: input should be true or false"),
        ("run.report='true'", "run.report='true': input should be true or false"),
        ("model.path=null", "model.path=null: input should be a valid string"),
        ("model.lora.r='8'", "model.lora.r='8': input should be 1, 8, 16"),
        ("model.lora.r=8.0", "model.lora.r=8.0: input should be 1, 8, 16"),
        ("learner.zero_stage=true", "learner.zero_stage=true: input should be 0, 1, 2 or 3"),
        ("model.lora.targets=q_proj", "model.lora.targets='q_proj': input should be a list"),
        ("learner.betas=[0.9, yes]", "learner.betas.1=yes: input should be a valid number"),
        ("learner.betas=[0.9]", "learner.betas=[0.9]: input should be a list of 2 values"),
        ("arithmetic.keep_carry={two: 0.5}", "arithmetic.keep_carry.two='two': input should be a valid integer"),
        ("arithmetic.keep_carry={02: 0.5}", "arithmetic.keep_carry.02=02: a number that begins with 0"),
        ("arithmetic.keep_carry=[1]", "arithmetic.keep_carry=[1]: input should be a mapping"),
        ("data.template_kwargs={enable_thinking: no}", "data.template_kwargs.enable_thinking=no: write true or false"),
        ("data.template_kwargs={a: [010]}", "data.template_kwargs.a.list.0=010: a number that begins with 0"),
        ("run.steps=!!python/object:os.getcwd 7", "the value of run.steps is not valid YAML at line 1, column 1"),
        ("run.steps=!!timestamp 2024-01-01", "the value of run.steps is not valid YAML at line 1, column 1"),
        ("model.lora.targets=&a [*a]", "the value of model.lora.targets is not valid YAML at line 1"),
        ('run.output_dir="a\\0b"', "run.output_dir='a\\x00b' holds a null character"),
    ],
)
def test_value_of_other_type_is_refused(override: str, message: str) -> None:
    assert refusal([override]).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"run.steps": np.int64(5)}, 5),
        ({"run.steps": np.array(5)}, 5),
        ({"learner.learning_rate": np.float32(0.5)}, 0.5),
        ({"learner.learning_rate": 1}, 1.0),
        ({"learner.betas": np.array([0.5, 0.25])}, (0.5, 0.25)),
        ({"rollout.enforce_eager": np.bool_(True)}, True),
        ({"model.path": Path("a") / "b"}, "a/b"),
        ({"model.path": np.str_("a")}, "a"),
        ({"model.lora.targets": ["q_proj"]}, ("q_proj",)),
        ({"arithmetic.keep_carry": {np.int64(2): 0.5}}, {2: 0.5}),
    ],
)
def test_equivalent_python_values_are_accepted(overrides: dict[str, object], expected: object) -> None:
    (key,) = overrides
    config = Config.load(overrides=overrides)
    found = value(config, key)
    assert (found, type(found)) == (expected, type(expected))
    assert resolved(parse(as_yaml(config), "it"))["run"]["seed"] == 0  # nothing of numpy's is in the way


@pytest.mark.parametrize(
    "overrides",
    [
        {"run.steps": True},
        {"run.steps": 5.0},
        {"run.steps": np.float64(5.0)},
        {"run.steps": "5"},
        {"run.steps": np.array([5])},
        {"run.report": 1},
        {"learner.learning_rate": "1e-4"},
        {"learner.learning_rate": np.bool_(True)},
        {"run.name": 2024},
        {"model.lora.targets": {"q_proj"}},
        {"model.lora.r": True},
    ],
)
def test_other_python_values_are_refused(overrides: dict[str, object]) -> None:
    (key,) = overrides
    assert refusal(overrides).startswith(f"{key}=")


def test_python_sections_are_accepted() -> None:
    trigger = TriggerSettings(from_step=1, rungs=(RungSettings(),))
    config = Config.load(
        overrides={"learner": LearnerSettings(ranks=2), "learner.cpus": 3, "algorithm.triggers": (trigger,)}
    )
    assert config.learner == LearnerSettings(ranks=2, cpus=3)
    assert config.algorithm.triggers == (trigger,)


NAMES = [
    "no",
    "y",
    "on",
    "1e5",
    "1.",
    "2024-01-01",
    "null",
    "Null",
    "010",
    "0x10",
    "0o7",
    "1_000",
    "true",
    "e1",
    "1e-5",
]
TEXTS = [
    "~",
    "<<",
    "=",
    "- a",
    "a: b",
    "#x",
    " x ",
    "a\nb",
    "\u2028x",
    ".inf",
    "*a",
    "!x",
    "{",
    "1:30",
    "\x85",
    "é",
    "a\r\nb",
]


@pytest.mark.parametrize("text", [*NAMES, *TEXTS])
def test_every_text_round_trips_through_config_yaml(tmp_path: Path, text: str) -> None:
    config = Config.load(overrides={"data.system_prompt": text, "run.name": text if text in NAMES else None})
    file = as_yaml(config)
    assert Config.load(written(tmp_path, file)) == config
    assert yaml.load(file, yaml.CSafeLoader)["data"]["system_prompt"] == text  # a reader of YAML 1.1
    assert resolved(parse(dump({"text": text}), "it")) == {"text": text}  # and one of YAML 1.2 that knows no types


# --- bounds ---


@pytest.mark.parametrize(
    "override",
    [
        "learner.betas=[0.9, 1.0]",  # torch: Invalid beta parameter
        "learner.betas=[1, 0.9]",
        "learner.learning_rate=1e5",  # 1e-5 without its sign
        "learner.weight_decay=1e6",
        "algorithm.sampling.top_k=1099511627776",  # vLLM: int32
        "algorithm.sampling.temperature=0.001",  # vLLM samples with 0.01
        "algorithm.sampling.repetition_penalty=1e-300",  # 0 in float32
        "algorithm.group_size=20000",  # vLLM: VLLM_MAX_N_SEQUENCES
        "algorithm.allocation.max_group=20000",
        "rollout.request_timeout_s=1e308",  # poll(2)
        "rollout.start_timeout_s=1e308",
        "rollout.stall_timeout_s=1e10",
        "rewards.timeout_s=1e10",
        "rewards.memory_gib=1e300",  # setrlimit: 64 bits
        "rollout.kv_cache_gib=1e300",
        "rollout.cpus=0.00001",  # Ray: steps of 0.0001
        "learner.cpus=1e18",
        "learner.resources={a: 0.00001}",
        "run.max_restarts=99999999999",
        "evaluation.every=99999999999",
        "data.eval_prompts=99999999999",
        "run.ray_address=''",
        "model.adapter=''",
        "model.lora.targets=['']",
        "rewards.functions=[{function: exact, weight: 1e300}]",
    ],
)
def test_values_that_would_fail_later_are_refused(override: str) -> None:
    assert override.partition("=")[0].split(".{")[0] in refusal([override])


def test_run_name_has_length_limit_of_file_names() -> None:
    assert Config.load(None, ["run.name=" + "a" * 255]).run.name == "a" * 255
    assert "at most 255 characters" in refusal(["run.name=" + "a" * 256])


@pytest.mark.parametrize(
    "override",
    [
        "learner.betas=[0, 0.999]",
        "rollout.cpus=0.5",
        "rollout.cpus=1.5",
        "rollout.cpus=0",
        "rollout.cpus=16",
        "evaluation.sampling.temperature=0",
    ],
)
def test_values_at_the_bounds_are_accepted(override: str) -> None:
    assert Config.load(None, [override]) != Config()
