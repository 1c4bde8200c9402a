"""Reading the configuration: defaults, YAML, overrides, and the error for every mistake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from adagrpo_ray.config import Config, load_config
from adagrpo_ray.config.learner import LearnerSettings
from adagrpo_ray.config.listing import as_yaml, settings
from adagrpo_ray.config.reading import read_tree
from adagrpo_ray.config.run_settings import RunSettings
from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.errors import first_line
from adagrpo_ray.types import SamplingParams
from tests.support.places import CONFIGS as CONFIG_FOLDER
from tests.support.settings_files import refusal, written

CONFIGS = sorted(CONFIG_FOLDER.glob("*.yaml"))
TWO_TRIGGERS = """
algorithm:
  triggers:
    - {from_step: 1, rungs: [{temperature: 1.0}]}
    - from_step: 100
      rungs:
        - {times: 2}
        - {times: 3, temperature: 1.1, top_p: 0.99}
"""


def test_defaults_are_valid() -> None:
    assert Config.load(None) == Config()


def test_name_in_earlier_model_cards_still_loads() -> None:
    assert load_config(None, ["run.steps=3"]) == Config.load(overrides=["run.steps=3"])


def test_file_may_be_empty(tmp_path: Path) -> None:
    assert Config.load(written(tmp_path, "# nothing but defaults\n")) == Config()


def test_file_changes_only_named_settings(tmp_path: Path) -> None:
    config = Config.load(written(tmp_path, "run: {steps: 7}\nmodel: {lora: {r: 8}}\n"))
    expected = Config().model_dump()
    expected["run"]["steps"], expected["model"]["lora"]["r"] = 7, 8
    assert config.model_dump() == expected


def test_last_override_wins_over_earlier_ones_and_file(tmp_path: Path) -> None:
    path = written(tmp_path, "run: {steps: 7, seed: 3}\n")
    config = Config.load(path, ["run.steps=8", "run.steps=9", "learner.learning_rate=1e-4", "algorithm.budget=null"])
    assert (config.run.steps, config.run.seed) == (9, 3)
    assert config.learner.learning_rate == 1e-4
    assert config.algorithm.budget is None


def test_override_value_is_yaml_and_may_have_equals_sign() -> None:
    config = Config.load(
        None, ["model.lora.targets=[q_proj, v_proj]", "data.source=a=b.jsonl", "rollout.enforce_eager=true"]
    )
    assert config.model.lora.targets == ("q_proj", "v_proj")
    assert config.data.source == "a=b.jsonl"
    assert config.rollout.enforce_eager is True


def test_overrides_reach_into_lists_and_number_keys(tmp_path: Path) -> None:
    path = written(tmp_path, TWO_TRIGGERS + "arithmetic: {keep_carry: {2: 0.9, 3: 0.5}}\n")
    config = Config.load(path, ["algorithm.triggers.1.rungs.0.temperature=1.2", "arithmetic.keep_carry.2=0.1"])
    assert [s.temperature for s in config.algorithm.triggers[1].ladder()] == [1.2, 1.2, 1.1, 1.1, 1.1]
    assert config.arithmetic.keep_carry == {2: 0.1, 3: 0.5}


def test_ladder_of_trigger_has_one_entry_per_resample(tmp_path: Path) -> None:
    triggers = Config.load(written(tmp_path, TWO_TRIGGERS)).algorithm.triggers
    assert triggers[0].ladder() == (SamplingParams(),)
    assert triggers[1].ladder() == (*[SamplingParams()] * 2, *[SamplingParams(temperature=1.1, top_p=0.99)] * 3)


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().run.steps = 5  # type: ignore[misc]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configurations_of_the_repository_load(path: Path) -> None:
    assert Config.load(path) != Config()


def test_repository_has_configurations() -> None:
    assert {"tiny-cpu", "local-1gpu", "cluster"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_configuration_of_the_repository_trusts_remote_code(path: Path) -> None:
    assert Config.load(path).model.trust_remote_code is False


# --- errors ---


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lerner.ranks=2", "unknown key 'lerner' (value {'ranks': 2}); did you mean 'learner'?"),
        ("learner.rank=2", "unknown key 'learner.rank' (value 2); did you mean 'learner.ranks'?"),
        ("model.lora.alhpa=2", "unknown key 'model.lora.alhpa' (value 2); did you mean 'model.lora.alpha'?"),
        ("learner.layout=packed", "learner.layout (value 'packed') is called learner.packing now; rename it"),
        (
            "algorithm.triggers.1.rungs.1.temprature=2",
            "unknown key 'algorithm.triggers.1.rungs.1.temprature' (value 2); "
            "did you mean 'algorithm.triggers.1.rungs.1.temperature'?",
        ),
        ("model.lora.xyz=2", "unknown key 'model.lora.xyz' (value 2); valid: r, alpha, dropout, targets"),
    ],
)
def test_unknown_key_error_names_nearest_key(tmp_path: Path, override: str, expected: str) -> None:
    assert refusal([override], written(tmp_path, TWO_TRIGGERS)) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "model.dtype=float23",
            "model.dtype='float23': input should be 'float32' or 'bfloat16'; did you mean 'float32'?",
        ),
        (
            "learner.schedule=linar",
            "learner.schedule='linar': input should be 'constant', 'linear' or 'cosine'; did you mean 'linear'?",
        ),
        (
            "algorithm.loss.kind=dr_gpro",
            "algorithm.loss.kind='dr_gpro': input should be 'grpo', 'gspo', 'bnpo', 'dapo', 'cispo' or 'dr_grpo'; "
            "did you mean 'dr_grpo'?",
        ),
        ("model.lora.r=7", "model.lora.r=7: input should be 1, 8, 16, 32, 64, 128 or 256"),
    ],
)
def test_unknown_choice_error_lists_choices_and_nearest(override: str, expected: str) -> None:
    assert refusal([override]) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.steps=0", "run.steps=0: input should be greater than or equal to 1"),
        ("algorithm.group_size=1", "algorithm.group_size=1: input should be greater than or equal to 2"),
        ("algorithm.pilot_size=1", "algorithm.pilot_size=1: input should be greater than or equal to 2"),
        ("algorithm.sampling.top_p=0", "algorithm.sampling.top_p=0: input should be greater than 0"),
        (
            "rollout.gpu_memory_utilization=1.5",
            "rollout.gpu_memory_utilization=1.5: input should be less than or equal to 1",
        ),
        ("learner.ranks=two", "learner.ranks='two': input should be a valid integer"),
        ("algorithm=5", "algorithm=5: input should be a valid dictionary"),
        ("run.name=a/b", "run.name='a/b': string should match pattern"),
        ("arithmetic.keep_carry.2=3", "arithmetic.keep_carry.2=3: input should be less than or equal to 1"),
        ("algorithm.triggers=[{from_step: 0, rungs: []}]", "algorithm.triggers.0.from_step=0: input should be greater"),
    ],
)
def test_out_of_range_error_names_key(override: str, expected: str) -> None:
    assert refusal([override]).startswith(expected)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("algorithm.triggers=[{rungs: []}]", "algorithm.triggers.0.from_step is missing; set it"),
        ("algorithm.triggers=[{from_step: 1}]", "algorithm.triggers.0.rungs is missing; set it"),
        ("rewards.functions=[{judge: {name: a}}]", "rewards.functions.0.judge.model is missing; set it"),
    ],
)
def test_missing_value_error_names_key(override: str, expected: str) -> None:
    assert refusal([override]).splitlines()[0] == expected


def test_every_mistake_has_its_own_line() -> None:
    lines = refusal(["run.steps=0", "lerner.ranks=2", "model.dtype=float23"]).splitlines()
    assert [line.split("=")[0].split(" (")[0] for line in lines] == ["run.steps", "model.dtype", "unknown key 'lerner'"]


def test_yaml_error_names_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path, "run:\n  steps: 5\nmodel: {path: tiny\n")
    assert refusal(path=path).startswith(f"the configuration {path} is not valid YAML at line 4, column 1: ")


def test_override_yaml_error_names_key() -> None:
    assert refusal(["run.steps={"]).startswith("the value of run.steps is not valid YAML at line 1")


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("just words\n", "str"), ("3\n", "int")])
def test_file_without_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    path = written(tmp_path, text)
    assert refusal(path=path) == f"the configuration {path} holds a {kind}; it must be a mapping of sections"


def test_missing_file_error_names_path(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    message = refusal(path=path)
    assert message.startswith(f"cannot read the configuration {path}: ")
    assert message.endswith("give --config a YAML file")


def test_binary_file_error_names_path(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert refusal(path=path).startswith(f"cannot read the configuration {path}: ")


@pytest.mark.parametrize("override", ["run.steps", "run.steps:5", "=5", "run..steps=5", ".steps=5"])
def test_override_without_key_or_value_is_refused(override: str) -> None:
    assert refusal([override]) == (
        f"cannot read the override {override!r}; write key=value, as in learner.learning_rate=1e-4"
    )


@pytest.mark.parametrize("number", ["2", "-1", "first"])
def test_override_past_end_of_list_is_refused(tmp_path: Path, number: str) -> None:
    override = f"algorithm.triggers.{number}.from_step=3"
    assert refusal([override], written(tmp_path, TWO_TRIGGERS)) == (
        f"{override!r}: algorithm.triggers is a list of 2; {number!r} is none of its numbers 0 to 1"
    )


def test_override_into_value_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "run: {steps: 5}\n")
    assert refusal(["run.steps.more=3"], path) == "'run.steps.more=3': run.steps is the value 5 and has no 'more'"


# --- conflicts ---


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["algorithm.budget=7", "algorithm.group_size=8"],
            ["algorithm.budget=7 completions is smaller than the 8", "algorithm.group_size=8", "raise the budget"],
        ),
        (
            ["algorithm.budget=800", "algorithm.budget_unit=tokens", "algorithm.allocation.max_group=10"],
            ["algorithm.budget=800 tokens is smaller than the 2560 that one group may take", "max_group=10"],
        ),
        (
            ["algorithm.allocation.min_group=9"],
            ["algorithm.allocation.min_group=9 is more than max_group=8", "null: 4 and 8"],
        ),
        (
            ["algorithm.allocation={rule: value, min_group: 9, max_group: 8}"],
            ["algorithm.allocation.min_group=9 is more than max_group=8", "null: 2 and 32"],
        ),
        (
            [
                "algorithm.allocation={rule: value, max_group: 24}",
                "algorithm.budget=4000",
                "algorithm.budget_unit=tokens",
            ],
            ["algorithm.budget=4000 tokens is smaller than the 6144 that one group may take", "max_group=24"],
        ),
        (
            ["algorithm.allocation.hopeless_below=0.6", "algorithm.allocation.solved_above=0.5"],
            ["algorithm.allocation.hopeless_below=0.6 is more than solved_above=0.5", "lower the first"],
        ),
        (
            ["algorithm.allocation.rule=value", "algorithm.allocation.max_group=6"],
            ["algorithm.allocation.rule=value gives groups algorithm.group_size=8", "min_group=2 and max_group=6"],
        ),
        (
            ["algorithm.num_mini_batches=5", "algorithm.prompts_per_step=4"],
            ["algorithm.num_mini_batches=5 divides", "algorithm.prompts_per_step=4", "lower the first"],
        ),
        (
            ["algorithm.train_size=4", "algorithm.train_on=last"],
            ["algorithm.train_size=4 is used by train_on=balanced and max_variance only", "not by train_on=last"],
        ),
        (
            ["algorithm.train_size=4", "algorithm.name=grpo"],  # its train_on is null
            ["algorithm.train_size=4 is used by train_on=balanced and max_variance only", "not by train_on=last"],
        ),
        (
            ["rollout.max_model_len=256", "rollout.max_new_tokens=256"],
            ["rollout.max_model_len=256 leaves no room", "rollout.max_new_tokens=256", "raise the first"],
        ),
        (
            ["rollout.max_num_batched_tokens=127", "rollout.max_num_seqs=128"],
            [
                "rollout.max_num_batched_tokens=127 is less than one token",
                "rollout.max_num_seqs=128",
                "raise the first",
            ],
        ),
        (
            ["rollout.sleep=true", "algorithm.max_staleness=1"],
            ["rollout.sleep=true stops all rollouts", "algorithm.max_staleness=1", "set it to 0"],
        ),
        (
            ["learner.offload_optimizer=true"],
            ["learner.offload_optimizer=true is a part of ZeRO", "learner.zero_stage=0", "1, 2 or 3"],
        ),
        (
            ["algorithm.triggers=[{from_step: 5, rungs: []}, {from_step: 1, rungs: []}]"],
            ["algorithm.triggers have from_step [5, 1]", "order them by step"],
        ),
        (
            ["algorithm.triggers=[{from_step: 5, rungs: []}, {from_step: 5, rungs: []}]"],
            ["algorithm.triggers have from_step [5, 5]", "each step once"],
        ),
        (
            ["rewards.functions=[{function: exact}, {function: exact, weight: 2}]"],
            ["rewards.functions names a function twice: ['exact', 'exact']"],
        ),
        (
            ["algorithm.pilot_size=8"],
            [
                "algorithm.pilot_size=8 leaves no commit in any group",
                "largest has 8",
                "lower it",
                "allocation.max_group",
            ],
        ),
        (
            ["algorithm.pilot_size=2", "algorithm.allocation.rule=value", "algorithm.budget=16"],
            ["algorithm.pilot_size=2 leaves no commit in any group", "largest has 2 completions"],
        ),
        (
            ["algorithm.pilot_size=4", "algorithm.name=dapo"],
            ["algorithm.pilot_size=4 samples pilots, which algorithm.name=dapo does not", "remove it"],
        ),
        (
            ["algorithm.pilot_size=2", "algorithm.criterion.kind=balanced"],
            ["algorithm.pilot_size=2", "algorithm.criterion.kind=balanced", "remove one of the two"],
        ),
        (["rewards.correct_by=answer"], ["rewards.correct_by='answer' is none of rewards.functions ['exact']"]),
        (
            ["algorithm.criterion={kind: any_above, reward: answer}"],
            ["algorithm.criterion.reward='answer' is none of rewards.functions ['exact']"],
        ),
        (
            ["algorithm.sampling.temperature=0"],
            ["algorithm: a temperature of 0", "use a temperature above 0"],
        ),
        (
            ["algorithm.triggers=[{from_step: 1, rungs: [{}, {temperature: 0}]}]"],
            ["algorithm: a temperature of 0", "use a temperature above 0"],
        ),
        (
            ["evaluation.samples=4", "evaluation.sampling.temperature=0"],
            ["evaluation.samples=4 with temperature 0", "use samples=1"],
        ),
        (
            ["evaluation.benchmarks=[gsm8k, {name: aime24, samples: 4}]", "evaluation.sampling.temperature=0"],
            ["evaluation.benchmarks.1.samples=4 with temperature 0", "use samples=1"],
        ),
        (["evaluation.benchmarks=[gsm8k, gsm8k]"], ["names a benchmark twice: ['gsm8k', 'gsm8k']", "give it once"]),
        (
            ["checkpoint.keep_best=true"],
            ["checkpoint.keep_best=true needs evaluations", "evaluation.every=0", "raise both above 0"],
        ),
        (
            ["checkpoint.keep_best=true", "evaluation.every=5", "data.eval_prompts=0"],
            ["checkpoint.keep_best=true needs evaluations", "data.eval_prompts=0"],
        ),
    ],
)
def test_conflicting_settings_are_refused(overrides: list[str], expected: list[str]) -> None:
    message = refusal(overrides)
    assert [part for part in expected if part not in message] == []
    assert ";" not in message.split("; ", 1)[1]  # one problem, one remedy


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.pilot_size=7"],  # smaller groups are sampled as a whole
        ["algorithm.pilot_size=8", "algorithm.allocation.max_group=9"],
        ["algorithm.pilot_size=16", "algorithm.allocation.rule=value"],
        ["algorithm.budget=16", "algorithm.allocation.rule=value"],  # two completions for each of eight groups
        ["algorithm.budget=8", "algorithm.allocation.max_group=32", "algorithm.name=grpo"],  # has no allocation
        ["algorithm.budget=8", "algorithm.group_size=8"],
        ["algorithm.allocation.rule=value", "algorithm.allocation.min_group=8"],
        ["algorithm.train_on=max_variance"],
        ["algorithm.train_on=max_variance", "algorithm.train_size=4"],
        ["algorithm.train_size=4"],
        ["algorithm.train_on=balanced", "algorithm.train_size=4"],
        ["algorithm.advantage_scale=mean", "rewards.error_score=-1"],  # only used with on_error=score
        ["algorithm.advantage_scale=none", "rewards.functions=[{function: answer}]"],
        ["rollout.max_model_len=257", "rollout.max_new_tokens=256"],
        ["rollout.max_num_batched_tokens=128", "rollout.max_num_seqs=128"],
        ["learner.offload_optimizer=true", "learner.zero_stage=1"],
        ["algorithm.triggers=[{from_step: 1, rungs: []}, {from_step: 5, rungs: []}]"],
        ["rewards.functions=[{function: exact}, {function: answer}]", "rewards.correct_by=answer"],
        ["algorithm.criterion={kind: any_above, reward: exact}"],
        ["evaluation.samples=1", "evaluation.sampling.temperature=0"],
        ["checkpoint.keep_best=true", "evaluation.every=5"],
        ["evaluation.benchmarks=[gsm8k, aime24]", "evaluation.sampling.temperature=0"],
    ],
)
def test_settings_at_the_limit_are_accepted(overrides: list[str]) -> None:
    assert Config.load(None, overrides) != Config()


def test_all_conflicts_are_reported_together() -> None:
    lines = refusal(["algorithm.budget=7", "rewards.correct_by=answer", "learner.offload_optimizer=true"]).splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        *("rewards.correct_by='answer'", "learner.offload_optimizer=true"),  # of one section each
        "algorithm.budget=7",  # of algorithm and rollout
    ]


def test_conflicts_are_reported_together_with_invalid_values() -> None:
    lines = refusal(["run.steps=0", "rewards.correct_by=answer"]).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["run.steps=0:", "rewards.correct_by='answer'"]


def test_section_alone_refuses_conflicts() -> None:
    with pytest.raises(ValidationError, match=r"learner\.offload_optimizer=true is a part of ZeRO"):
        LearnerSettings(offload_optimizer=True)
    assert LearnerSettings(offload_optimizer=True, zero_stage=1).zero_stage == 1


def test_copy_of_section_refuses_unknown_names() -> None:
    assert Config().run.model_copy(update={"steps": 7}).steps == 7
    with pytest.raises(TypeError, match="RunSettings has no 'folder'"):
        Config().run.model_copy(update={"folder": "runs"})


# --- secrets ---

SECRET = "https://user:hunter2@host/x"


def test_every_secret_is_reported_and_none_is_shown() -> None:
    lines = refusal([f"run.output_dir={SECRET}", f"data.source={SECRET}", "algorithm.budget=7"]).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["run.output_dir", "data.source"]
    assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize("key", ["run.outputdir", "run.folder", "nothing"])
def test_unknown_key_error_shows_no_secret(key: str) -> None:
    message = refusal([f"{key}={SECRET}"])
    assert f"{key}" in message
    assert "(value ***)" in message
    assert "hunter2" not in message


def test_pydantic_error_shows_no_secret() -> None:
    for build in (lambda: RunSettings(output_dir=SECRET), lambda: Config.model_validate({"model": {"path": SECRET}})):
        with pytest.raises(ValidationError, match="holds a user, a password or a query") as raised:
            build()
        assert "hunter2" not in str(raised.value)
        assert "[type=" not in first_line(raised.value)


# --- the config.yaml of a run ---

RAN = Config.model_validate({"run": {"name": "one", "steps": 7}, "rollout": {"sleep": True}})
CHOSEN = {"run.name": "one", "rollout.sleep": True}


def test_decided_settings_are_null_when_config_yaml_is_loaded(tmp_path: Path) -> None:
    path = written(tmp_path, as_yaml(RAN, CHOSEN))
    assert yaml.safe_load(path.read_text())["rollout"]["sleep"] is True
    assert Config.load(path) == Config.load(overrides={"run.steps": 7})
    assert Config.load(written(tmp_path, as_yaml(RAN))) == RAN  # as it was given


def test_override_or_manual_change_wins_over_decided_value(tmp_path: Path) -> None:
    path = written(tmp_path, as_yaml(RAN, CHOSEN))
    assert Config.load(path, ["rollout.sleep=true"]).rollout.sleep is True
    path.write_text(path.read_text().replace("sleep: true", "sleep: false", 1))
    assert Config.load(path).rollout.sleep is False


def test_settings_that_ran_are_read_as_tree(tmp_path: Path) -> None:
    assert read_tree(written(tmp_path, as_yaml(RAN, CHOSEN))) == yaml.safe_load(as_yaml(RAN))


@pytest.mark.parametrize("decided", ["5", "[run.name]", "{}", "{run.name: x, nothing.at.all: 1, run: 2}"])
def test_decided_may_have_any_content(tmp_path: Path, decided: str) -> None:
    path = written(tmp_path, f"run: {{name: one}}\ndecided: {decided}\n")
    if decided.startswith("{"):
        assert Config.load(path).run.name == "one"
    else:
        assert refusal(path=path).startswith("unknown key 'decided'")


# --- lists of the settings ---


MAPPINGS = (
    *("arithmetic.keep_carry", "rollout.resources", "learner.resources", "data.template_kwargs"),
    *("reasoning_gym.tasks[].config", "environment.arguments", "rewards.functions[].judge.extra"),
)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of all values of a dumped configuration; entries of lists have `[]` in their key."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in MAPPINGS:
            yield from leaves(value, f"{key}.")
            continue
        yield key
        for entry in value if isinstance(value, tuple) else ():
            if isinstance(entry, dict):
                yield from leaves(entry, f"{key}[].")


def test_every_setting_is_listed_once(tmp_path: Path) -> None:
    served = "name: a, model: m, base_url: http://x/v1, template: '{completion}'"
    kinds = f"[{{judge: {{{served}}}}}, {{reward_model: {{{served.replace('a,', 'b,')}}}}}]"
    more = ["reasoning_gym.tasks=[{name: gcd}]", f"rewards.functions={kinds}", "evaluation.benchmarks=[gsm8k]"]
    full = Config.load(written(tmp_path, TWO_TRIGGERS), more)
    listed = [key for key, _, _ in settings()]
    assert len(set(listed)) == len(listed)
    # Sections that are null by default are listed with their settings.
    optional = {key for key in listed if ".answer." in key}
    assert len(optional) == 3 * len(PhaseParams.model_fields)
    assert set(listed) - optional == set(leaves(full.model_dump()))


def test_every_setting_has_a_description() -> None:
    assert [key for key, _, line in settings() if not line.strip() or "\n" in line] == []


def test_listed_defaults_are_those_of_the_configuration() -> None:
    for key, default, _ in settings():
        if "[]" not in key and ".answer." not in key:
            value: Any = Config().model_dump(mode="json")
            for name in key.split("."):
                value = value[name]
            listed = yaml.safe_load(default)
            if key == "arithmetic.keep_carry":
                listed = {str(digits): share for digits, share in listed.items()}
            assert listed == value, key
    assert ("algorithm.triggers[].from_step", "required") in [(key, default) for key, default, _ in settings()]


@pytest.mark.parametrize("path", [None, *CONFIGS], ids=lambda p: p.stem if p else "defaults")
def test_resolved_configuration_is_read_back_unchanged(tmp_path: Path, path: Path | None) -> None:
    config = Config.load(path)
    assert Config.load(written(tmp_path, as_yaml(config))) == config


def test_packing_follows_setting_or_flash_attention() -> None:
    names = ("null", "padded", "packed", "shared")
    found = {name: Config.load(None, [f"learner.packing={name}"]).learner for name in names}
    assert {name: (s.packing_with(False), s.packing_with(True)) for name, s in found.items()} == {
        "null": ("shared", "packed"),
        **{name: (name, name) for name in names[1:]},
    }
    assert Config.load(None).learner == found["null"]


def test_benchmark_is_given_by_its_name_or_with_settings(tmp_path: Path) -> None:
    named = ["evaluation.benchmarks=[gsm8k, {name: aime24, path: aime.jsonl, limit: 5, samples: 2}]"]
    first, second = Config.load(None, named).evaluation.benchmarks
    assert (first.name, first.path, first.limit, first.samples) == ("gsm8k", None, None, None)
    assert (second.name, second.path, second.limit, second.samples) == ("aime24", "aime.jsonl", 5, 2)
    path = written(tmp_path, "evaluation:\n  benchmarks:\n  - gsm8k\n  - name: math500\n")
    assert [one.name for one in Config.load(path).evaluation.benchmarks] == ["gsm8k", "math500"]
    assert Config.load(path, ["evaluation.benchmarks.1.limit=7"]).evaluation.benchmarks[1].limit == 7
    assert refusal(["evaluation.benchmarks=[gsm8]"]).endswith("did you mean 'gsm8k'?")
    assert refusal(["evaluation.benchmarks=gsm8k"]) == (
        "evaluation.benchmarks='gsm8k': input should be a list, as in [a, b]"
    )


def test_uses_phases_finds_every_answer_setting() -> None:
    cold = "{temperature: 0.5}"
    assert not Config.load(None, []).uses_phases
    for override in (
        f"algorithm.sampling.answer={cold}",
        f"evaluation.sampling.answer={cold}",
        f"algorithm.triggers=[{{from_step: 1, rungs: [{{temperature: 1.2, answer: {cold}}}]}}]",
    ):
        assert Config.load(None, [override]).uses_phases
    (rung,) = Config.load(None, [override]).algorithm.triggers[0].ladder()
    assert (rung.temperature, rung.answer) == (1.2, PhaseParams(temperature=0.5))
