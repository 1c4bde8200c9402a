"""The whole program as a user starts it: launch/train.py on real Ray, vLLM, DeepSpeed and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.program import launch

STEPS = 4


MODES: dict[str, tuple[str, ...]] = {
    "in turn": (),
    "ahead": ("rollout.actors=2", "algorithm.max_staleness=1", "learner.ranks=2", "learner.zero_stage=2"),
}


@pytest.fixture(scope="module", params=list(MODES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of a few steps; its folder and output.

    In turn with one actor of each kind, or with two of each and rollouts that run a step ahead.
    """
    folder = tmp_path_factory.mktemp("runs")
    ended = launch(
        "--config",
        "launch/configs/tiny-cpu.yaml",
        f"run.output_dir={folder}",
        "run.name=e2e",
        f"run.steps={STEPS}",
        "data.eval_prompts=16",
        "algorithm.resample=immediate",
        *MODES[request.param],
        # The first rung draws as first attempts do, so that only the second one filters anything.
        "algorithm.triggers=[{from_step: 1, rungs: [{temperature: 1.0}, {temperature: 1.1, top_p: 0.99}]}]",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "e2e", ended.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_summary_says_what_the_run_was(run: tuple[Path, str]) -> None:
    folder, _ = run
    summary, steps = json.loads((folder / "summary.json").read_text()), metrics(folder)
    assert summary["steps"] == STEPS == len(steps)
    assert 0 <= summary["eval_accuracy_before"] <= 1
    assert 0 <= summary["eval_accuracy_after"] <= 1
    assert summary["generated_tokens"] == sum(s["generated_tokens"] for s in steps) > 0
    assert summary["trained_tokens"] == sum(s["trained_tokens"] for s in steps) > 0
    assert summary["resamples"] == [sum(rung) for rung in zip(*(s["resamples"] for s in steps), strict=True)]
    assert summary["seconds"] > 0


def test_failing_groups_were_resampled_and_hard_classes_more_often(run: tuple[Path, str]) -> None:
    steps = metrics(run[0])
    assert sum(sum(s["resamples"]) for s in steps) > 0
    by_difficulty = [sum(s["resamples_by_difficulty"].get(f"{digits} digits", 0) for s in steps) for digits in (2, 5)]
    assert by_difficulty[0] < by_difficulty[1]


def test_every_step_sent_one_new_version(run: tuple[Path, str]) -> None:
    steps = metrics(run[0])
    assert [s["weight_version"] for s in steps] == [1, 2, 3, 4]
    assert all(s["sync_bytes"] > 100_000 for s in steps)


def test_learner_and_rollout_agree_where_nothing_was_filtered(run: tuple[Path, str]) -> None:
    """First attempts are drawn at temperature 1, so only resampled groups may show a difference."""
    steps = metrics(run[0])
    plain = [s for s in steps if sum(s["resamples"][1:]) == 0 and s["trained_tokens"] and not s["staleness"]]
    for step in plain:
        assert step["sampling_logp_difference_mean"] < 1e-4
    assert all(s["sampling_logp_difference_mean"] < 0.5 for s in metrics(run[0]))


def test_rollouts_run_ahead_as_far_as_they_may(run: tuple[Path, str]) -> None:
    folder, _ = run
    most = yaml.safe_load((folder / "config.yaml").read_text())["algorithm"]["max_staleness"]
    ages = [s["staleness"] for s in metrics(folder)]
    assert ages[0] == 0
    assert all((0 < age <= most) if most else age == 0 for age in ages[1:])


@pytest.mark.faults
@pytest.mark.slow
def test_steps_without_a_single_group_do_not_stop_a_run_that_samples_ahead(tmp_path: Path) -> None:
    ended = launch(
        "--config",
        "launch/configs/tiny-cpu.yaml",
        *MODES["ahead"],
        f"run.output_dir={tmp_path}",
        "run.name=nothing",
        "run.steps=3",
        "data.eval_prompts=0",
        "algorithm.prompts_per_step=4",
        "algorithm.criterion={kind: any_above, threshold: 99}",
        "algorithm.triggers=[]",
        "algorithm.on_exhausted=drop",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    steps = metrics(tmp_path / "nothing")
    assert [s["groups_dropped"] for s in steps] == [4, 4, 4]
    assert [s["trained_tokens"] for s in steps] == [0, 0, 0]
    assert [s["weight_version"] for s in steps] == [1, 2, 3]


FAILING = """
groups = 0

def score(completions, answer, **context):
    global groups
    groups += 1
    if groups == 2 or groups > 4:
        raise ValueError(f"no score for group {groups}")
    return [float(place % 2) for place, _ in enumerate(completions)]
"""


@pytest.mark.faults
@pytest.mark.slow
def test_a_reward_function_that_fails_costs_a_group_and_at_last_the_run_which_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_rewards.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    ended = launch(
        "--config",
        "launch/configs/tiny-cpu.yaml",
        f"run.output_dir={tmp_path}",
        "run.name=failing",
        "run.steps=4",
        "data.eval_prompts=0",
        "algorithm.name=grpo",
        "algorithm.prompts_per_step=4",
        "rewards.functions=[{function: 'failing_rewards:score'}]",
    )
    assert ended.returncode != 0
    said = ended.stdout + ended.stderr
    assert said.count("no score for group 2") == 1, said
    assert "3 ready 0 waiting 1 not scored" in said
    assert "no group of step 2 could be scored" in said
    assert f"step 1 is in {tmp_path}/failing/checkpoints: go on with --resume {tmp_path}/failing" in said
    (step,) = metrics(tmp_path / "failing")
    assert (step["groups_ready"], step["groups_failed"], step["groups_dropped"]) == (3, 1, 1)
    assert step["trained_tokens"] > 0
    assert list((tmp_path / "failing" / "checkpoints").iterdir())


def test_configuration_is_kept_and_reads_back(run: tuple[Path, str]) -> None:
    kept = yaml.safe_load((run[0] / "config.yaml").read_text())
    assert kept["run"]["steps"] == STEPS
    assert kept["data"]["eval_prompts"] == 16


def test_adapter_loads_with_peft_and_is_not_the_initial_one(run: tuple[Path, str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = run[0] / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    moved = [p.abs().sum().item() for n, p in model.named_parameters() if "lora_B" in n]
    assert moved
    assert all(size > 0 for size in moved)


def test_output_reads_well_without_a_terminal(run: tuple[Path, str]) -> None:
    folder, output = run
    assert "\x1b" not in output
    assert f"run folder: {folder}" in output
    assert "2000 prompts to train on, 16 held out" in output
    assert "held-out accuracy" in output


@pytest.mark.parametrize("run", ["in turn"], indirect=True)
def test_a_run_folder_is_never_overwritten(run: tuple[Path, str]) -> None:
    folder, _ = run
    before = (folder / "summary.json").read_bytes()
    ended = launch("--config", "launch/configs/tiny-cpu.yaml", f"run.output_dir={folder.parent}", "run.name=e2e")
    assert ended.returncode != 0
    assert "run.name" in ended.stderr
    assert (folder / "summary.json").read_bytes() == before
